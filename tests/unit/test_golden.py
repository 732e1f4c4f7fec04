from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.bundle.golden import ARRAYS, TOKENS, Golden, Outputs
from edge.errors import BundleError


def outputs(seed: int) -> Outputs:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(1, 4, 8)).astype(np.float32)
    logits = random.normal(size=20).astype(np.float32)
    return Outputs(rows, logits, random.integers(0, 20, TOKENS).astype(np.int32))


def golden() -> Golden:
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    return Golden(picture, random.normal(size=(1, 3, 6, 6)).astype(np.float32), outputs(1), outputs(2))


def arrays(of: Golden) -> dict[str, Any]:
    found: dict[str, Any] = {"picture": of.picture, "pixel_values": of.pixel_values}
    for suffix, side in (("", of.fp32), (".stored", of.stored)):
        found |= {field.name + suffix: getattr(side, field.name) for field in fields(side)}
    return found


def test_golden_survives_being_written(tmp_path: Path) -> None:
    made = golden()
    made.save(tmp_path / "golden.npz")
    found = arrays(Golden.load(tmp_path / "golden.npz"))
    assert found.keys() == arrays(made).keys()
    for name, values in arrays(made).items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert not np.array_equal(found["logits"], found["logits.stored"])


def test_the_names_are_those_of_the_contract(tmp_path: Path) -> None:
    """Kotlin and Swift read them."""
    golden().save(tmp_path / "golden.npz")
    kinds = {"image_embeds": ("float32", 3), "logits": ("float32", 1), "tokens": ("int32", 1)}
    contract = {"picture": ("uint8", 3), "pixel_values": ("float32", 4), **kinds}
    contract |= {f"{name}.stored": kind for name, kind in kinds.items()}
    with np.load(tmp_path / "golden.npz", allow_pickle=False) as file:
        assert {name: (str(file[name].dtype), file[name].ndim) for name in file.files} == contract


@pytest.mark.parametrize("name", ARRAYS)
def test_a_missing_array_is_named(name: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", **{key: value for key, value in arrays(golden()).items() if key != name})
    with pytest.raises(BundleError, match=name):
        Golden.load(tmp_path / "golden.npz")


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("change", [lambda a: a.astype(np.float64), lambda a: a[None], lambda a: a.ravel()[0]])
def test_an_array_of_another_kind_is_named(name: str, change: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", **(whole := arrays(golden())) | {name: change(whole[name])})
    with pytest.raises(BundleError, match=f"has {name} as"):
        Golden.load(tmp_path / "golden.npz")


def test_an_object_array_is_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", **arrays(golden()) | {"logits": np.array([{}], dtype=object)})
    with pytest.raises(BundleError, match="allow_pickle"):
        Golden.load(tmp_path / "golden.npz")


@pytest.mark.parametrize("content", [b"", b"golden", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x04N."])
def test_what_is_no_golden_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "golden.npz").write_bytes(content)
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read"):
        Golden.load(tmp_path / "golden.npz")


def test_a_bare_array_is_no_golden(tmp_path: Path) -> None:
    with (tmp_path / "golden.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read"):
        Golden.load(tmp_path / "golden.npz")


def test_a_golden_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read"):
        Golden.load(tmp_path / "golden.npz")


@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.booleans())
@settings(max_examples=300, deadline=None)
def test_only_a_bundle_error_escapes_damage(
    at: int, byte: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = tmp_path_factory.getbasetemp() / "golden-whole.npz"
    if not whole.exists():
        golden().save(whole)
    content = bytearray(whole.read_bytes())
    at %= len(content)
    content[at] = byte
    damaged = whole.with_name("golden-damaged.npz")
    damaged.write_bytes(content[:at] if cut else content)
    try:
        found = Golden.load(damaged)
    except BundleError:
        return
    # What still reads is what was written: the archive checks its members.
    for name, values in arrays(golden()).items():
        np.testing.assert_array_equal(arrays(found)[name], values, err_msg=name)


def test_outputs_are_replaced_one_by_one() -> None:
    changed = replace(golden(), stored=outputs(3))
    np.testing.assert_array_equal(changed.fp32.logits, golden().fp32.logits)
    assert not np.array_equal(changed.stored.logits, golden().stored.logits)
