"""A cache that does not serve: one warning in a process, and the same answers."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import write_model_bundle
from PIL import Image

import edge
from edge.bundle import checksums, vouching
from edge.bundle.manifest import Bundle
from edge.devices import detect, file_facts, host, once, whole_files
from edge.engines import installed_engines
from edge.formats import xnnpack_cache
from edge.planning import tuned
from edge.planning.tuned import Tuned


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(once, "_SAID", set())
    monkeypatch.setattr(file_facts, "_SETTLED", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edge-vlm"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_model_bundle(tmp_path / "bundle", context=400)


Spoil = Callable[[Path, pytest.MonkeyPatch], None]


def a_file_is_there(place: Path, _: pytest.MonkeyPatch) -> None:
    place.parent.write_bytes(b"")


def another_users(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "win32":
        pytest.skip("below a user's profile nobody else may write")
    place.mkdir(parents=True)
    monkeypatch.setattr(os, "getuid", lambda: 12345)


def the_disk_is_full(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(whole_files, "_begun", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))


def it_is_read_only(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refused)


def there_is_no_home(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA")
    monkeypatch.setattr(Path, "home", homeless)


def hashing(bundle: Bundle) -> None:
    checksums.check(bundle)


def vouched(bundle: Bundle) -> None:
    vouching.remember(bundle.path, "edge verify")
    assert vouching.voucher(bundle.path, ()) is None


def packed(bundle: Bundle) -> None:
    with xnnpack_cache.weights(bundle.path / "decoder.onnx", "library 1") as part:
        assert part is None


def answered(bundle: Bundle) -> None:
    with edge.load(bundle.path, engine="null") as session:
        assert session.ask(Image.new("RGB", (20, 30)), "What?", system="Be brief, be exact.", max_tokens=3)


@pytest.mark.parametrize("use", [hashing, vouched, packed, answered], ids=lambda use: use.__name__)
@pytest.mark.parametrize(
    "spoil",
    [a_file_is_there, another_users, the_disk_is_full, it_is_read_only, there_is_no_home],
    ids=lambda spoil: spoil.__name__,
)
def test_it_costs_time_and_one_warning(
    bundle: Bundle,
    place: Path,
    use: Callable[[Bundle], None],
    spoil: Spoil,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spoil(place, monkeypatch)
    for _ in range(2):
        use(bundle)
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "every start hashes the bundle" in warning.getMessage()
    assert warning.getMessage().endswith("set XDG_CACHE_HOME to a folder of yours with room")


def test_a_cache_that_serves_is_not_spoken_of(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    """Nor one that is empty yet."""
    for use in (hashing, answered):
        use(bundle)
    assert tuned.choice(bundle, detect(), installed_engines()) is None
    assert vouching.voucher(bundle.path, ()) is None
    vouching.remember(bundle.path, "edge verify")
    assert vouching.voucher(bundle.path, ()) == "edge verify on this machine"
    assert caplog.records == []


def remembered(bundle: Bundle) -> Path:
    file_facts.fact(bundle.path / "decoder.onnx", file_facts.SHA256, lambda _: "0")
    return host.cache_dir() / file_facts.NAME


def vouched_for(bundle: Bundle) -> Path:
    vouching.remember(bundle.path, "edge verify")
    (file,) = (host.cache_dir() / "vouched").iterdir()
    return file


def measured(bundle: Bundle) -> Path:
    tuned.keep(bundle, detect(), installed_engines(), Tuned(None, 2, 1.0))
    (file,) = (host.cache_dir() / "tuned").iterdir()
    return file


@pytest.mark.parametrize("content", [b"", b"{", b"[3]", b'{"by": 3}', b"\xff\xfe"])
@pytest.mark.parametrize(
    ("keep", "use", "then"),
    [
        (remembered, hashing, "files are hashed again"),
        (vouched_for, lambda bundle: vouching.voucher(bundle.path, ()), "edge verify does so anew"),
        (measured, lambda bundle: tuned.choice(bundle, detect(), installed_engines()), "edge tune measures again"),
    ],
)
def test_what_is_damaged_is_found_anew_with_a_warning(
    bundle: Bundle,
    keep: Callable[[Bundle], Path],
    use: Callable[[Bundle], object],
    then: str,
    content: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = keep(bundle)
    file.write_bytes(content)
    for _ in range(2):
        assert use(bundle) is None
    (warning,) = caplog.records
    assert warning.getMessage().startswith(f"{file} is damaged; ")
    assert warning.getMessage().endswith(then)


def test_packed_weights_that_are_damaged_are_packed_again(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    path = bundle.path / "decoder.onnx"
    with xnnpack_cache.weights(path, "library 1") as part:
        assert part is not None
        part.write_bytes(b"packed")
    (kept,) = xnnpack_cache.folder().glob("*.bin")
    kept.write_bytes(b"damage")
    with xnnpack_cache.weights(path, "library 1") as again:
        assert again is not None and not again.exists()
    (warning,) = caplog.records
    assert warning.getMessage() == f"{kept} is damaged; weights are packed again"
