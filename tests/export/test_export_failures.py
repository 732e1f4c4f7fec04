"""An export that fails leaves nothing, and what was there stays."""

from __future__ import annotations

import errno
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import onnx_ir
import pytest
from commands import MAIN
from conftest import REPOSITORY, write_bundle
from exported import Exports, files_of, golden_of, manifest_of

from edge.bundle.golden import Golden
from edge.bundle.manifest import Bundle
from edge.errors import EdgeError, EngineError, ParityError, UsageError
from exporters import export as exporting
from exporters.export import ExportRequest, export
from exporters.judge import Cost
from exporters.pipeline import Built


@pytest.fixture
def recorded(exports: Exports, monkeypatch):
    """An export that writes again what an earlier one wrote, so that only what is around it happens: the call."""
    path = exports.bundle()

    def again(order, folder, progress):
        manifest = Bundle.open(path).manifest
        for file in (*(file for part in manifest.parts for file in part.files), manifest.tokenizer):
            shutil.copy(path / file.path, folder / file.path)
        parts = tuple(replace(part, error={}) for part in manifest.parts)
        lost = {key.split(".")[0]: part.error[key] for part in manifest.parts for key in part.error if "loss" in key}
        costs = {"vision": Cost(lost["vision"], 1, None), "decoder": Cost(lost["prefill"], 1, None)}
        return Built(parts, golden_of(path), {"segments": manifest.golden_prompt["segments"]}, costs)

    monkeypatch.setattr(exporting, "build", again)

    def call(output, **request):
        asked = ExportRequest(str(exports.checkpoint()), output, threads=1, **request)
        return export(asked, lambda stage, done: None)

    return call


def test_a_recorded_export_is_like_a_real_one(exports: Exports, recorded, tmp_path):
    done = recorded(tmp_path / "out")
    assert done.report.ok
    real, again = (manifest_of(path) for path in (exports.bundle(), done.path))
    assert again == real
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_bundle_is_replaced_only_by_a_good_one(exports: Exports, recorded, tmp_path):
    old = write_bundle(tmp_path / "out", name="old").path
    before = files_of(old)
    with pytest.raises(ParityError, match=r"quantising costs the (vision|prefill) .* more than 1e-06"):
        recorded(old, max_loss=1e-6)
    assert files_of(old) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    recorded(old, max_loss=0.9)
    assert Bundle.open(old).manifest.name != "old"
    assert files_of(old).keys() == files_of(exports.bundle()).keys()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("loss", [float("nan"), -1.0])
def test_a_loss_that_nothing_keeps(recorded, tmp_path, loss):
    with pytest.raises(EdgeError):
        recorded(tmp_path / "out", max_loss=loss)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_bundle_is_not_touched(exports: Exports, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    before = files_of(tmp_path)
    request = ExportRequest(str(exports.checkpoint()), tmp_path / "out", threads=1)
    with pytest.raises(UsageError, match="exists and is not a bundle"):
        export(request, lambda stage, done: None)
    assert files_of(tmp_path) == before


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (Golden, "save"),
        (exporting.bundles, "write_manifest"),
        (exporting, "with_errors"),  # between the two manifests
    ],
    ids=["golden", "manifest", "second manifest"],
)
def test_a_disk_that_fills_up_leaves_the_old_bundle(recorded, tmp_path, monkeypatch, where, what):
    before = files_of(write_bundle(tmp_path / "out").path)
    monkeypatch.setattr(where, what, full)
    with pytest.raises(EdgeError, match="no space left while writing") as caught:
        recorded(tmp_path / "out")
    assert "space" in caught.value.hint
    assert files_of(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_fills_up_while_a_graph_is_written(exports: Exports, tmp_path, monkeypatch):
    def half(model, path, **options):
        path.write_bytes(b"half a graph")
        full()

    monkeypatch.setattr(onnx_ir, "save", half)
    request = ExportRequest(str(exports.checkpoint()), tmp_path / "out", schemes=("fp32",), threads=1)
    with pytest.raises(EdgeError, match="no space left while writing"):
        export(request, lambda stage, done: None)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_full_is_told_before_the_work(exports: Exports, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(EdgeError, match=r"the bundle takes about 0\.00 GB, and 0\.00 GB are free"):
        export(ExportRequest(str(exports.checkpoint()), tmp_path / "out"), lambda stage, done: None)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_is_missing_is_told_before_the_work(tmp_path, monkeypatch):
    bare = tuple(replace(e, installed=e.name != "llamacpp", reason=None) for e in exporting.installed_engines())
    monkeypatch.setattr(exporting, "installed_engines", lambda evaluators: bare)
    with pytest.raises(EngineError, match=r"no engine here opens gguf, so the decoder could not be proven") as caught:
        export(ExportRequest("no such folder", tmp_path / "out", device="rpi5"), lambda stage, done: None)
    assert "llama-cpp-python is not installed" in caught.value.message
    assert "pip install 'edge-vlm[llamacpp]'" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [EngineError("no engine"), RuntimeError("a bug"), KeyboardInterrupt(), SystemExit(143)]
)
def test_whatever_stops_an_export_leaves_nothing(recorded, tmp_path, monkeypatch, error):
    def stop(bundle, threads):
        raise error

    monkeypatch.setattr(exporting, "verify", stop)
    with pytest.raises(type(error)):
        recorded(tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists() or list((tmp_path / "deep").iterdir()) == []


def started(checkpoint, output):
    """The command as a process, in the middle of its work: one part is written, the other is not."""
    command = [sys.executable, "-c", MAIN, "export", str(checkpoint), "-o", str(output), "--scheme", "fp32", "-t", "1"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not list(output.parent.glob(f".{output.name}.partial-*/vision.onnx")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


def test_a_polite_kill_leaves_nothing(exports: Exports, tmp_path):
    before = files_of(write_bundle(tmp_path / "out").path)
    with started(exports.checkpoint(), tmp_path / "out") as process:
        process.send_signal(signal.SIGTERM)
        said, complained = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert said == b""
    assert b"Traceback" not in complained
    assert files_of(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_hard_kill_leaves_is_swept_by_the_next_export(exports: Exports, recorded, tmp_path):
    with started(exports.checkpoint(), tmp_path / "out") as process:
        process.kill()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.partial-")
    recorded(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_place_with_spaces_can_be_typed(recorded, tmp_path):
    done = recorded(tmp_path / "my bundle")
    assert shlex.split(done.next_command)[2] == str(tmp_path / "my bundle")
