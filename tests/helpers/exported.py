"""Checkpoints of random numbers and the bundles made from them, each made once in a run of tests; bundles that lie."""

from __future__ import annotations

import fcntl
import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from PIL import Image

from edge.bundle import manifest as bundles
from edge.bundle.golden import Golden
from edge.types import Array
from edge.verify import Report
from exporters import standin
from exporters.export import Exported, ExportRequest, export


class Exports:
    """What is asked for twice is made once; nobody may change it. Other processes may have the same `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._exported: dict[tuple[Any, ...], Exported] = {}

    def checkpoint(self, projector: str = "ldpnetv2", dtype: str = "float16", **kind: Any) -> Path:
        """The smallest stand-in; `kind` as `standin.write` takes it."""

        def write(path: Path) -> Path:
            standin.write(path, standin.SHAPES["tiny"], projector=projector, dtype=getattr(torch, dtype), **kind)
            return path

        made: Path = self._once("checkpoint", (projector, dtype, *sorted(kind.items())), write)
        return made

    def export(self, *, checkpoint: Path | None = None, **request: Any) -> Exported:
        """Of the default checkpoint unless another is given; `request` as ExportRequest takes it."""
        source = checkpoint or self.checkpoint()
        wanted = (source, repr(sorted((name, value) for name, value in request.items() if value)))
        if wanted not in self._exported:

            def write(path: Path) -> Exported:
                return export(ExportRequest(str(source), path, threads=1, **request), lambda stage, done: None)

            self._exported[wanted] = self._once("bundle", wanted, write)
        return self._exported[wanted]

    @cached_property
    def calibration(self) -> Path:
        """A folder of two pictures and questions."""

        def write(folder: Path) -> Path:
            folder.mkdir()
            lines = []
            for index, question in enumerate(("What colour is it?", "And this?")):
                Image.new("RGB", (60 + 40 * index, 50), (200, 30 * index, 10)).save(folder / f"{index}.png")
                lines.append(json.dumps({"image": f"{index}.png", "question": question, "answer": "Red."}))
            (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
            return folder

        return self._once("calibration", (), write)

    def bundle(self, **request: Any) -> Path:
        return self.export(**request).path

    def _once(self, kind: str, wanted: object, write: Callable[[Path], Any]) -> Any:
        """What `write` gives for a place; of several processes one writes, and the others wait and read."""
        path = self.folder / f"{kind}-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:12]}"
        given = path.with_suffix(".pickle")
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not given.exists():
                given.write_bytes(pickle.dumps(write(path)))
            return pickle.loads(given.read_bytes())


def weights(bundle: Path, part: str) -> dict[str, Array]:
    """All numbers of a part's graph, by name."""
    model = onnx.load(bundle / f"{part}.onnx")
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def lying(bundle: Path, to: Path, part: str, numbers: Mapping[str, Array]) -> Path:
    """A copy whose graph holds other numbers, and whose manifest vouches for them."""
    shutil.copytree(bundle, to)
    model = onnx.load(to / f"{part}.onnx")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, values in numbers.items():
        old = numpy_helper.to_array(tensors[name])
        assert (values.dtype, values.shape) == (old.dtype, old.shape)
        assert not np.array_equal(values, old), f"{name} stays what it was"
        tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))
    onnx.save(model, to / f"{part}.onnx")  # the numbers inside: these are small
    vouch(to)
    return to


def vouch(bundle: Path) -> None:
    """Make the manifest describe the files as they are."""
    manifest = manifest_of(bundle)
    files = [file for part in manifest["parts"] for file in part["files"]]
    for entry in [*files, manifest["tokenizer"], manifest["golden"]]:
        entry.update(asdict(bundles.describe(bundle, bundle / entry["path"])))
    (bundle / bundles.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def manifest_of(bundle: Path) -> Any:
    return json.loads((bundle / bundles.MANIFEST).read_bytes())


def golden_of(bundle: Path) -> Golden:
    return Golden.load(bundle / "golden.safetensors")


def failed(report: Report) -> set[tuple[str, str]]:
    """The stage and the reference of each row that is not ok."""
    return {(row.stage, row.against) for row in report.rows if not row.ok}


def files_of(folder: Path) -> dict[Path, tuple[int, str]]:
    """Everything below a folder, with its time and its content's hash."""
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, bundles.sha256(path))
        for path in folder.rglob("*")
        if path.is_file()
    }
