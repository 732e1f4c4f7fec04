"""A component that is too large for the memory lies in mapped files, and is the same module."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from edge.bundle.manifest import Bundle
from edge.errors import CheckpointError
from exporters.export import ExportRequest, export
from exporters.models import room
from exporters.sources.checkpoint import open_checkpoint


@pytest.fixture
def tight(monkeypatch, tmp_path):
    """Hardly any memory, and files of any size are mapped."""
    monkeypatch.setattr(room, "detect", lambda: SimpleNamespace(memory_bytes=1000))
    monkeypatch.setattr(room, "_LARGE", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    Path(tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


def test_a_mapped_component_is_the_same(exports, monkeypatch, tight):
    found = open_checkpoint(str(exports.checkpoint()))
    for component in found.components.values():
        mapped = component.load(found.weights).state_dict()
        with monkeypatch.context() as patch:
            patch.setattr(room, "detect", lambda: SimpleNamespace(memory_bytes=1 << 40))
            plain = component.load(found.weights).state_dict()
        assert all(torch.equal(mapped[name], plain[name]) for name in plain)
        name = next(name for name, tensor in mapped.items() if tensor.ndim > 1)
        mapped[name].mul_(2)
        assert torch.equal(mapped[name], 2 * plain[name])  # it can be changed
    assert not any(tight.glob("edge-vlm-*"))  # nothing stays


@pytest.mark.parametrize(("free", "numbers", "mapped"), [(4000, 900, True), (4000, 950, True), (400, 200, False)])
def test_a_full_disk_is_not_written_to(monkeypatch, tight, free, numbers, mapped):
    """What stays in memory takes no room there."""
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert room.Room([(numbers,)], torch.float32).mapped is mapped


def test_what_neither_memory_nor_disk_can_hold_is_refused(monkeypatch, tight):
    """It was loaded into memory, and the system ended the process."""
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=2000))
    with pytest.raises(CheckpointError, match=r"4\.0 kB of memory.*1\.0 kB.*2\.0 kB are free") as refused:
        room.Room([(1000,)], torch.float32)
    assert "TMPDIR" in refused.value.hint
    monkeypatch.setattr(room, "detect", lambda: SimpleNamespace(memory_bytes=5000))
    assert not room.Room([(1000,)], torch.float32).mapped


def test_files_lie_on_a_disk(monkeypatch, tight):
    assert room._place() == tight
    monkeypatch.delenv("TMPDIR")
    assert room._place() == (Path("/var/tmp") if os.access("/var/tmp", os.W_OK) else tight)


def test_an_export_from_mapped_files_is_the_same_bundle(exports, monkeypatch, tight, tmp_path):
    request = ExportRequest(str(exports.checkpoint()), tmp_path / "mapped", threads=1)
    mapped = export(request, lambda *_: None).path
    monkeypatch.setattr(room, "detect", lambda: SimpleNamespace(memory_bytes=1 << 40))
    plain = export(ExportRequest(request.checkpoint, tmp_path / "plain", threads=1), lambda *_: None).path
    one, other = (Bundle.open(path).manifest for path in (mapped, plain))
    assert [part.files for part in one.parts] == [part.files for part in other.parts]
    assert one.golden == other.golden


def test_what_fits_stays_in_memory(monkeypatch, tight):
    monkeypatch.setattr(room, "detect", lambda: SimpleNamespace(memory_bytes=6000))
    kept = room.Room([(400,), (400,), (400,)], torch.float32)
    given = [torch.arange(400.0) for _ in range(3)]
    found = [kept.keep(tensor) for tensor in given]
    assert [one is other for one, other in zip(found, given, strict=True)] == [True, False, False]
    assert all(torch.equal(one, other) for one, other in zip(found, given, strict=True))
