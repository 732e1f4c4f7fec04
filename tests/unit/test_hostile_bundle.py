"""Numbers, texts and arrays of a bundle that are none, or far too large."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SPEC

from edge.bundle import golden, manifest_file
from edge.bundle.manifest import Bundle
from edge.errors import BundleError
from edge.planning import memory
from edge.spec import MOST_SIDE

MakeBundle = Callable[..., Bundle]


def rewritten(bundle: Bundle, change: Callable[[dict[str, Any]], None]) -> Path:
    told = json.loads((bundle.path / "manifest.json").read_bytes())
    change(told)
    (bundle.path / "manifest.json").write_text(json.dumps(told))
    return bundle.path


@pytest.mark.parametrize("size", [0, MOST_SIDE + 1, 20_000, 10**6, 10**12])
def test_a_picture_that_takes_all_memory(make_bundle: MakeBundle, size: int) -> None:
    path = rewritten(make_bundle(), lambda told: told["image"].update(size=size))
    with pytest.raises(BundleError, match=f"'image' has size {size}, at most 4096 pixels are read"):
        Bundle.open(path)


@pytest.mark.parametrize("field", ["name", "license", "recipe"])
def test_a_text_without_an_end(make_bundle: MakeBundle, field: str) -> None:
    path = rewritten(make_bundle(), lambda told: told.update({field: "x" * 10**7}))
    with pytest.raises(BundleError, match=f"{field} has 10,000,000 letters") as caught:
        Bundle.open(path)
    assert len(caught.value.message) < 500


def test_a_manifest_without_an_end(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_bundle().path
    monkeypatch.setattr(manifest_file, "MOST_BYTES", 1000)
    with pytest.raises(BundleError, match="at most 1,000 are read"):
        Bundle.open(path)


def test_half_a_character(make_bundle: MakeBundle) -> None:
    path = rewritten(make_bundle(), lambda told: told.update(name="\ud800"))
    with pytest.raises(BundleError, match="surrogates not allowed"):
        Bundle.open(path)


def test_contexts_are_tried_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them at once would take gigabytes."""
    tried: list[int] = []

    class Need:
        class sizes:
            spec = SPEC.decoder
            image_tokens = 4

        vision, kinds = 0, ()

    def one(need: Any, context: int, *how: Any) -> Any:
        tried.append(context)
        return type("Memory", (), {"peak": 0})()

    monkeypatch.setattr(memory, "memory", one)
    monkeypatch.setattr(memory, "chain", lambda *parts: islice((c for part in parts for c in part), 3))
    assert memory.shrunk(Need, 1) is not None  # type: ignore[arg-type]
    assert len(tried) == 1


def archive(path: Path, shape: tuple[int, ...], dtype: str, content: bytes) -> Path:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": dtype, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("picture.npy", head.getvalue() + content)
    return path


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((400_000_000,), "|u1"), ((10**6, 10**6, 10**6), "<f4"), ((2**62, 4), "<f8"), ((1,), "|O")],
)
def test_a_golden_array_is_not_unpacked_before_its_head_is_read(
    tmp_path: Path, shape: tuple[int, ...], dtype: str
) -> None:
    path = archive(tmp_path / "golden.npz", shape, dtype, bytes(1 << 22))
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match="cannot be read"):
            golden.Golden.load(path)
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()
