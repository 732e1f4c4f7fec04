"""What a session is surrounded by: a clock that jumps, a home that takes nothing, a bundle that goes away."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import call
from fakes import write_model_bundle
from PIL import Image

import edge
from edge.bundle.manifest import Bundle
from edge.errors import BundleError

DAY = 24 * 3600.0


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_model_bundle(tmp_path / "bundle")


@pytest.fixture
def archive(bundle: Bundle, tmp_path: Path) -> Path:
    assert call("package", bundle.path, "--zip", tmp_path / "bundle.zip").code == 0
    return tmp_path / "bundle.zip"


@pytest.mark.parametrize("hours", [-48, 48])
@pytest.mark.parametrize("touched", [-DAY, 0.0, DAY])
def test_a_clock_that_jumps_hides_no_change(
    hours: int, touched: float, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, now = bundle.path / "decoder.onnx", time.time()
    content = file.read_bytes()
    os.utime(file, (now + touched, now + touched))
    bundle.check()
    monkeypatch.setattr(time, "time", lambda: now + 3600.0 * hours)
    bundle.check()
    bundle.check()  # what was found may be remembered by now
    file.write_bytes(content[::-1])
    os.utime(file, (now + touched, now + touched))
    with pytest.raises(BundleError, match=r"decoder\.onnx"):
        bundle.check()


def test_a_home_that_takes_nothing_takes_no_answer(
    bundle: Bundle, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert call("inspect", bundle.path).code == 0
    with edge.load(bundle.path, engine="null") as session:
        assert session.ask(Image.new("RGB", (20, 30)), "What?", max_tokens=3)
    said = call("inspect", archive)
    assert said.code == 1
    assert "hint: set XDG_CACHE_HOME" in said.err


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root gives files away")
def test_a_cache_of_another_user_is_not_used(
    bundle: Bundle, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert call("inspect", archive).code == 0
    os.chown(tmp_path / "cache" / "edge-vlm", 65534, 65534)
    with edge.load(bundle.path, engine="null") as session:
        assert session.ask(Image.new("RGB", (20, 30)), "What?", max_tokens=3)
    said = call("inspect", archive)
    assert said.code == 1
    assert "is not this user's own folder" in said.err


def test_a_session_goes_on_when_its_bundle_is_gone(bundle: Bundle) -> None:
    with edge.load(bundle.path, engine="null") as session:
        before = session.ask(Image.new("RGB", (20, 30)), "What?", max_tokens=3)
        shutil.rmtree(bundle.path)
        session.forget()
        assert session.ask(Image.new("RGB", (20, 30)), "What?", max_tokens=3) == before
    with pytest.raises(BundleError):
        edge.load(bundle.path, engine="null")


CUT = """
import os, sys, edge
with edge.load(sys.argv[1], engine="null") as session:
    session.ask((), "What?", max_tokens=3)
    os.truncate(os.path.join(sys.argv[1], "embed_tokens.npy"), 0)
    session.forget()
    session.ask((), "And now, of all these letters?", max_tokens=3)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system may keep the pages")
def test_what_is_cut_while_it_is_mapped_ends_the_process(bundle: Bundle) -> None:
    """docs/security.md says so: no answer is made of a page that is not there."""
    done = subprocess.run([sys.executable, "-c", CUT, str(bundle.path)], check=False, capture_output=True, timeout=600)
    assert done.returncode == -7, done.stderr.decode()[-500:]  # SIGBUS
