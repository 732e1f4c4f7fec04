"""An image that is read ahead: decoded while the parts are opened, and with what its format needs only."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import write_model_bundle
from PIL import Image

import edge
from edge.bundle.manifest import Bundle
from edge.errors import ImageError
from edge.inference import loader, read_ahead
from edge.inputs.image import open_image

WAIT = 60.0  # seconds after which a test fails instead of hanging


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_model_bundle(tmp_path / "bundle")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(noise(1)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """The thread of every image that is cut into views."""
    found: list[threading.Thread] = []
    views = read_ahead.views

    def counted(*arguments: Any) -> Any:
        found.append(threading.current_thread())
        return views(*arguments)

    monkeypatch.setattr(read_ahead, "views", counted)
    return found


def noise(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3)).astype(np.uint8)


def test_parts_are_opened_while_it_is_read(bundle: Bundle, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither waits for the other: the parts, here, until the image was read."""
    was_read, open_part, views = threading.Event(), loader.open_part, read_ahead.views

    def reads(*arguments: Any) -> Any:
        found = views(*arguments)
        was_read.set()
        return found

    def opens(*arguments: Any) -> Any:
        assert was_read.wait(WAIT)
        return open_part(*arguments)

    monkeypatch.setattr(read_ahead, "views", reads)
    monkeypatch.setattr(loader, "open_part", opens)
    with edge.load(bundle.path, engine="null", image=photo) as session:
        assert len(session.ask(photo, "What?", max_tokens=2)) > 0


def test_the_answer_is_the_same(bundle: Bundle, photo: Path, readers: list[threading.Thread]) -> None:
    with edge.load(bundle.path, engine="null") as session:
        expected = session.ask(photo, "What?", max_tokens=6)
    assert readers == [threading.main_thread()]
    with edge.load(bundle.path, engine="null", image=str(photo)) as session:
        assert session.ask(photo, "What?", max_tokens=6) == expected
        assert len(readers) == 2 and readers[1] is not threading.main_thread()


def test_it_serves_one_question(bundle: Bundle, photo: Path, readers: list[threading.Thread]) -> None:
    """The file may be another one by the next."""
    with edge.load(bundle.path, engine="null", image=photo) as session:
        first = session.encode_image(photo)
        Image.fromarray(noise(2)).save(photo)
        assert session.encode_image(photo).key != first.key
        assert len(readers) == 2


@pytest.mark.parametrize("other", [noise(1), "copy.png"], ids=["array", "path"])
def test_another_image_is_read_itself(
    other: Any, bundle: Bundle, photo: Path, readers: list[threading.Thread], tmp_path: Path
) -> None:
    source = tmp_path / other if isinstance(other, str) else other
    Image.fromarray(noise(2)).save(tmp_path / "copy.png")
    with edge.load(bundle.path, engine="null", image=photo) as session:
        found = session.encode_image(source)
        seen = session.encode_image(photo)
    assert (found.key == seen.key) == (not isinstance(other, str))
    assert len(readers) == 2


@pytest.mark.parametrize("image", [b"no image", "nowhere.png"])
def test_what_cannot_be_read_is_said_with_the_question(image: Any, bundle: Bundle) -> None:
    with edge.load(bundle.path, engine="null", image=image) as session:
        assert len(session.ask(None, "Who?", max_tokens=2)) > 0
        with pytest.raises(ImageError):
            session.ask(image, "What?", max_tokens=2)
        assert len(session.ask(noise(1), "What?", max_tokens=2)) > 0


def test_nothing_is_read_ahead_where_memory_is_short(
    bundle: Bundle, photo: Path, readers: list[threading.Thread]
) -> None:
    with edge.load(bundle.path, engine="null") as whole:
        limit = whole.plan.peak_bytes - 1
    with edge.load(bundle.path, engine="null", image=photo, max_memory=limit) as session:
        assert session.plan.one_at_a_time
        session.ask(photo, "What?", max_tokens=2)
    assert readers == [threading.main_thread()]


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_usual_formats_wait_for_no_rare_ones(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's `init` imports every format that it knows."""
    expected = encoded(format)
    pixels = np.asarray(open_image(expected))
    path = tmp_path / "photo"
    path.write_bytes(expected)

    def imports() -> bool:
        raise AssertionError("all formats were imported")

    monkeypatch.setattr(Image, "init", imports)
    for source in (expected, path, str(path)):
        np.testing.assert_array_equal(np.asarray(open_image(source)), pixels)
    with pytest.raises(ImageError, match="all formats were imported"):
        open_image(encoded("WEBP"))


@pytest.mark.parametrize("start", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"], ids=["JPEG", "PNG"])
def test_what_only_begins_so_is_named_as_before(start: bytes) -> None:
    with pytest.raises(ImageError, match="is not an image, or is damaged"):
        open_image(start + bytes(100))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_an_image_that_comes_through_a_pipe_is_read_once(format: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(encoded(format),), daemon=True)
    writer.start()
    assert open_image(tmp_path / "pipe").size == (30, 20)
    writer.join(WAIT)


def encoded(format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(1)).save(buffer, format)
    return buffer.getvalue()
