"""What was hashed once is not hashed again, until it changes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.bundle import checksums
from edge.bundle.manifest import Bundle
from edge.devices import file_facts
from edge.errors import BundleError


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read to be hashed."""
    names: list[str] = []
    sha256 = checksums.sha256

    def counting(path: Path) -> str:
        names.append(path.name)
        return sha256(path)

    monkeypatch.setattr(checksums, "sha256", counting)
    return names


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setattr(file_facts, "_SETTLED", 0.0)
    return tmp_path / "cache" / "edge-vlm" / "checked.json"


FILES = ["decoder.onnx", "decoder.onnx.data", "golden.safetensors", "tokenizer.json", "vision.onnx"]


def test_an_unchanged_file_is_read_once(make_bundle: Callable[..., Bundle], hashed: list[str]) -> None:
    bundle = make_bundle()
    checksums.check(bundle)
    assert sorted(hashed) == FILES
    hashed.clear()
    checksums.check(bundle)
    assert hashed == []


def test_a_changed_file_is_read_again_and_found(make_bundle: Callable[..., Bundle], hashed: list[str]) -> None:
    bundle = make_bundle()
    checksums.check(bundle)
    hashed.clear()
    path = bundle.path / "vision.onnx"
    path.write_bytes(b"v" * path.stat().st_size)
    with pytest.raises(BundleError, match=r"vision.onnx is not the file that was exported"):
        checksums.check(bundle)
    assert hashed == ["vision.onnx"]


def test_times_set_back_hide_nothing(make_bundle: Callable[..., Bundle], hashed: list[str]) -> None:
    bundle = make_bundle()
    path = bundle.path / "vision.onnx"
    checksums.check(bundle)
    before = path.stat()
    path.write_bytes(b"v" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BundleError, match=r"vision.onnx is not the file"):
        checksums.check(bundle)


def test_a_damaged_file_is_not_remembered(make_bundle: Callable[..., Bundle], hashed: list[str], place: Path) -> None:
    bundle = make_bundle()
    path = bundle.path / "vision.onnx"
    path.write_bytes(b"v" * path.stat().st_size)
    for _ in range(2):
        with pytest.raises(BundleError, match=r"vision.onnx is not the file"):
            checksums.check(bundle)
    assert hashed.count("vision.onnx") == 2
    assert file_facts.state(path) not in json.loads(place.read_bytes())


def test_what_was_touched_just_now_is_not_remembered(
    make_bundle: Callable[..., Bundle], hashed: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_facts, "_SETTLED", 1e9)
    bundle = make_bundle()
    checksums.check(bundle)
    checksums.check(bundle)
    assert sorted(hashed) == sorted(2 * FILES)
    assert not place.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"1:2:3:4:5": 6}', b"\xff\xfe"])
def test_a_damaged_record_is_made_anew(
    make_bundle: Callable[..., Bundle], hashed: list[str], place: Path, content: bytes
) -> None:
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    bundle = make_bundle()
    checksums.check(bundle)
    hashed.clear()
    checksums.check(bundle)
    assert hashed == []
    assert len(json.loads(place.read_bytes())) == len(FILES)


def test_a_place_that_cannot_be_written_costs_time_only(
    make_bundle: Callable[..., Bundle], hashed: list[str], place: Path
) -> None:
    place.parent.parent.write_bytes(b"a file where the folder should be")
    bundle = make_bundle()
    checksums.check(bundle)
    checksums.check(bundle)
    assert sorted(hashed) == sorted(2 * FILES)


def test_the_oldest_are_forgotten(
    make_bundle: Callable[..., Bundle], hashed: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_facts, "_MOST", 6)
    first, second = make_bundle("first"), make_bundle("second")
    checksums.check(first)
    checksums.check(second)
    assert len(json.loads(place.read_bytes())) == 6
    hashed.clear()
    checksums.check(second)
    assert hashed == []


def test_a_file_that_cannot_be_read_is_told(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle()
    (bundle.path / "vision.onnx").unlink()
    with pytest.raises(BundleError, match=r"vision\.onnx cannot be read: No such file"):
        checksums.check(bundle)


def test_a_fact_is_kept_for_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1234")
    asked: list[Path] = []

    def size(of: Path) -> str:
        asked.append(of)
        return str(of.stat().st_size)

    assert [file_facts.fact(path, "size", size) for _ in range(3)] == ["4"] * 3
    assert file_facts.fact(path, "twice", lambda of: "8") == "8"
    assert asked == [path]
    path.write_bytes(b"12345")
    assert file_facts.fact(path, "size", size) == "5"


@pytest.mark.skipif(sys.platform == "win32", reason="below a user's profile nobody else may write")
def test_what_others_may_write_is_made_the_users_own(place: Path) -> None:
    place.parent.mkdir(parents=True)
    place.parent.chmod(0o777)
    assert file_facts.private_folder("packed") == place.parent / "packed"
    assert [folder.stat().st_mode & 0o777 for folder in (place.parent, place.parent / "packed")] == [0o755, 0o700]


@pytest.mark.skipif(sys.platform == "win32", reason="below a user's profile nobody else may write")
@pytest.mark.parametrize("whose", ["another user", "a link"])
def test_facts_of_others_are_not_believed(
    make_bundle: Callable[..., Bundle], place: Path, tmp_path: Path, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may write what is remembered may say of a damaged file that it is sound."""
    bundle = make_bundle()
    checksums.check(bundle)
    path = bundle.path / "vision.onnx"
    expected = bundle.manifest.part("vision").files[0].sha256
    path.write_bytes(b"v" * path.stat().st_size)
    place.write_text(json.dumps({file_facts.state(path): expected}))
    checksums.check(bundle)  # whoever is this user is believed
    if whose == "a link":
        place.parent.rename(tmp_path / "elsewhere")
        place.parent.symlink_to(tmp_path / "elsewhere")
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(BundleError, match=r"vision\.onnx is not the file"):
        checksums.check(bundle)
    with pytest.raises(PermissionError, match="not this user's own folder"):
        file_facts.private_folder("packed")
