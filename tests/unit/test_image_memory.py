"""What an image and a golden sample take in memory, and when that is refused."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SPEC
from fakes import write_golden, write_model_bundle
from PIL import Image

from edge import verify
from edge.bundle.manifest import Bundle
from edge.errors import BundleError, ImageError
from edge.inference.session import load
from edge.inputs import image, image_memory
from edge.inputs.image_memory import ALLOWED, needed, require_room
from edge.planning.memory import Memory
from edge.spec import ImageSpec

PAD, CROP = replace(SPEC.image, fit="pad"), replace(SPEC.image, fit="crop")


@pytest.mark.parametrize(
    ("size", "format", "spec", "bytes_needed"),
    [
        ((1000, 1000), "JPEG", CROP, 9_000_000),
        ((1000, 1000), "PNG", PAD, 9_000_000),
        ((1000, 1000), "JPEG2000", PAD, 20_000_000),
        ((2000, 100), "", CROP, 1_800_000),
        ((2000, 100), "PNG", PAD, 4 * 200_000 + 4 * 2000**2),
        ((100_000, 10), "PNG", PAD, 4 * 1_000_000 + 4 * 8192**2),  # it is shrunk before it is padded
    ],
)
def test_bytes_by_size(size: tuple[int, int], format: str, spec: ImageSpec, bytes_needed: int) -> None:
    assert needed(*size, format, spec) == bytes_needed


def test_no_image_that_is_read_takes_more_than_the_most() -> None:
    side = int(image.MAX_PIXELS**0.5)
    for width, height in ((side, side), (image.MAX_EDGE, image.MAX_PIXELS // image.MAX_EDGE)):
        for spec in (PAD, CROP):
            assert needed(width, height, "JPEG2000", spec) <= image_memory.MOST


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["path", "bytes", "image", "array"])
def test_what_takes_more_than_there_is_is_refused_by_its_head(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(png(900, 700))
    sources = {
        "path": tmp_path / "a.png",
        "bytes": png(900, 700),
        "image": Image.new("RGB", (900, 700)),
        "array": np.zeros((700, 900, 3), np.uint8),
    }
    Image.init()
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    require_room(sources[kind], CROP, 9 * 900 * 700)
    with pytest.raises(ImageError, match=r"an image of 900x700 pixels takes 5\.7 MB to read, and 5\.7 MB of memory"):
        require_room(sources[kind], CROP, 9 * 900 * 700 - 1)


@pytest.mark.parametrize("source", [b"", b"no image", "no/such/file"])
def test_what_is_no_image_is_said_as_ever(source: str | bytes) -> None:
    with pytest.raises(ImageError) as ours:
        require_room(source, PAD, 1000)
    with pytest.raises(ImageError) as theirs:
        image.open_image(source)
    assert ours.value.message == theirs.value.message


def test_a_plan_leaves_what_nothing_else_takes() -> None:
    both = Memory(runtime=10, vision=20, decoder=30, cache=5, activations=(3, 4), one_at_a_time=False)
    assert (both.peak, both.room(100)) == (72, 35)
    one = replace(both, one_at_a_time=True)
    assert (one.peak, one.room(100)) == (49, 55)


def test_a_session_refuses_what_its_plan_leaves_no_room_for(tmp_path: Path) -> None:
    bundle = write_model_bundle(tmp_path / "tiny")
    with load(bundle.path, engine="null", max_memory=200_000_000) as session:
        assert session.plan.image_bytes == ALLOWED
        with pytest.raises(ImageError, match=r"of 3900x3850 pixels takes 135\.1 MB to read, and 134\.2 MB of memory"):
            session.encode_image(png(3900, 3850))
        session.encode_image(png(90, 70))
    with load(bundle.path, engine="null") as session:
        assert session.plan.image_bytes > ALLOWED
        session.encode_image(png(3900, 3850))


def test_a_golden_sample_that_takes_what_the_model_needs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_golden(write_model_bundle(tmp_path / "tiny"))
    bundle = Bundle.open(tmp_path / "tiny")
    size = bundle.manifest.golden.bytes
    monkeypatch.setattr(verify, "detect", lambda: SimpleNamespace(memory_bytes=4 * size - 1))
    with pytest.raises(BundleError, match=r"golden\.safetensors takes"):
        verify.verify(bundle, engine="null")
