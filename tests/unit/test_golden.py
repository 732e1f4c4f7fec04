from __future__ import annotations

import contextlib
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SPEC
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from edge.bundle import safetensors
from edge.bundle.golden import ARRAYS, GOLDEN, ROUNDED, TOKENS, Golden, Outputs, References, golden_bytes
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


def rounding() -> Golden:
    """Of kernels that round activations."""
    return replace(golden(), rounded=outputs(3))


def arrays(of: Golden) -> dict[str, Any]:
    found: dict[str, Any] = {"picture": of.picture, "pixel_values": of.pixel_values}
    for suffix, side in (("", of.fp32), (".stored", of.stored), (".rounded", of.rounded)):
        found |= {field.name + suffix: getattr(side, field.name) for field in fields(side)} if side else {}
    return found


def write(path: Path, made: dict[str, Any]) -> Path:
    """As bundles of this schema have it, or as those of schema 1 do."""
    np.savez_compressed(path, **made) if path.suffix == ".npz" else safetensors.write(path, made)
    return path


@pytest.fixture(params=[GOLDEN, "golden.npz"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


@pytest.mark.parametrize("made", [golden(), rounding()])
def test_golden_survives_being_written(made: Golden, tmp_path: Path) -> None:
    made.save(tmp_path / GOLDEN)
    same(Golden.load(tmp_path / GOLDEN), made)


def test_both_formats_read_the_same(file: Path) -> None:
    same(Golden.load(write(file, arrays(golden()))), golden())


def same(found: Golden, made: Golden) -> None:
    read = arrays(found)
    assert read.keys() == arrays(made).keys()
    for name, values in arrays(made).items():
        assert read[name].dtype == values.dtype, name
        np.testing.assert_array_equal(read[name], values, err_msg=name)
    assert not np.array_equal(read["logits"], read["logits.stored"])


def test_the_names_are_those_of_the_contract(tmp_path: Path) -> None:
    """Kotlin and Swift read them."""
    rounding().save(tmp_path / GOLDEN)
    kinds = {"image_embeds": ("float32", 3), "logits": ("float32", 1), "tokens": ("int32", 1)}
    contract = {"picture": ("uint8", 3), "pixel_values": ("float32", 4), **kinds}
    contract |= {f"{name}{suffix}": kind for name, kind in kinds.items() for suffix in (".stored", ".rounded")}
    found = load_file(tmp_path / GOLDEN)
    assert {name: (str(array.dtype), array.ndim) for name, array in found.items()} == contract


@pytest.mark.parametrize("name", ARRAYS)
def test_a_missing_array_is_named(name: str, file: Path) -> None:
    write(file, {key: value for key, value in arrays(golden()).items() if key != name})
    with pytest.raises(BundleError, match=rf"has no {name}\n"):
        Golden.load(file)


@pytest.mark.parametrize("name", ROUNDED)
def test_what_rounds_is_there_as_a_whole(name: str, tmp_path: Path) -> None:
    made = arrays(rounding())
    write(tmp_path / GOLDEN, {key: value for key, value in made.items() if key != name})
    with pytest.raises(BundleError, match=rf"has no {name}\n"):
        Golden.load(tmp_path / GOLDEN)
    write(tmp_path / GOLDEN, made | {name: made[name].astype(np.float16)})
    with pytest.raises(BundleError, match=f"has {name} as float16"):
        Golden.load(tmp_path / GOLDEN)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("change", [lambda a: a.astype(np.float16), lambda a: a[None], lambda a: a.ravel()[:1][0]])
def test_an_array_of_another_kind_is_named(name: str, change: Any, file: Path) -> None:
    write(file, (whole := arrays(golden())) | {name: np.asarray(change(whole[name]))})
    with pytest.raises(BundleError, match=f"has {name} as"):
        Golden.load(file)


def test_an_object_array_is_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", **arrays(golden()) | {"logits": np.array([{}], dtype=object)})
    with pytest.raises(BundleError, match=r"logits\.npy is object"):
        Golden.load(tmp_path / "golden.npz")


@pytest.mark.parametrize("content", [b"", b"golden", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x04N.", bytes(99)])
def test_what_is_no_golden_is_refused(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(BundleError, match=f"{re.escape(file.name)} cannot be read"):
        Golden.load(file)


def test_a_bare_array_is_no_golden(tmp_path: Path) -> None:
    with (tmp_path / "golden.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read"):
        Golden.load(tmp_path / "golden.npz")


def test_a_golden_that_is_not_there(file: Path) -> None:
    with pytest.raises(BundleError, match=f"{re.escape(file.name)} cannot be read"):
        Golden.load(file)


@given(name=st.sampled_from([GOLDEN, "golden.npz"]), at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=...)
@settings(max_examples=400, deadline=None)
def test_only_a_bundle_error_escapes_damage(
    name: str, at: int, byte: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = write(tmp_path_factory.getbasetemp() / f"damaged-{name}", arrays(golden()))
    content = bytearray(file.read_bytes())
    at %= len(content)
    content[at] = byte
    file.write_bytes(content[:at] if cut else content)
    with contextlib.suppress(BundleError):
        found = arrays(Golden.load(file))
        assert {name: (array.dtype, array.ndim) for name, array in found.items()} == ARRAYS


def test_outputs_are_replaced_one_by_one() -> None:
    changed = replace(golden(), stored=outputs(3))
    np.testing.assert_array_equal(changed.fp32.logits, golden().fp32.logits)
    assert not np.array_equal(changed.stored.logits, golden().stored.logits)


def test_its_size_is_foreseen(tmp_path: Path) -> None:
    spec = replace(SPEC, image=replace(SPEC.image, size=6), prompt=replace(SPEC.prompt, image_tokens=4))
    spec = replace(spec, decoder=replace(SPEC.decoder, hidden=8, vocab=20))
    rounding().save(tmp_path / GOLDEN)
    header = 2000  # names and shapes
    size = (tmp_path / GOLDEN).stat().st_size
    assert 0 < size - golden_bytes(spec, picture=5 * 7 * 3, divided=0) < header
    of = rounding()
    replace(of, divided=References(of.fp32, of.stored, of.rounded)).save(tmp_path / GOLDEN)
    larger = (tmp_path / GOLDEN).stat().st_size
    assert 0 < larger - golden_bytes(spec, picture=5 * 7 * 3, divided=4) < 2 * header


def test_all_views_of_a_picture_are_kept_beside_the_one(tmp_path: Path) -> None:
    one, other = golden(), rounding()
    replace(other, divided=References(one.fp32, one.stored, one.fp32)).save(tmp_path / GOLDEN)
    found = Golden.load(tmp_path / GOLDEN)
    assert found.divided is not None and found.divided.rounded is not None
    np.testing.assert_array_equal(found.divided.stored.logits, one.stored.logits)
    np.testing.assert_array_equal(found.stored.logits, other.stored.logits)
    one.save(tmp_path / GOLDEN)
    assert Golden.load(tmp_path / GOLDEN).divided is None
