"""Checkpoints of random numbers and the bundles made from them, each made once in a run; and bundles that lie."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
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
    """What is asked for twice is made once; nobody may change it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checkpoints: dict[tuple[Any, ...], Path] = {}
        self._exported: dict[tuple[Any, ...], Exported] = {}

    def checkpoint(self, projector: str = "ldpnetv2", dtype: str = "float16", **kind: Any) -> Path:
        """The smallest stand-in; `kind` as `standin.write` takes it."""
        wanted = (projector, dtype, *sorted(kind.items()))
        if wanted not in self._checkpoints:
            path = self.folder / f"checkpoint-{len(self._checkpoints)}"
            standin.write(path, standin.SHAPES["tiny"], projector=projector, dtype=getattr(torch, dtype), **kind)
            self._checkpoints[wanted] = path
        return self._checkpoints[wanted]

    def export(self, *, checkpoint: Path | None = None, **request: Any) -> Exported:
        """Of the default checkpoint unless another is given; `request` as ExportRequest takes it."""
        source = checkpoint or self.checkpoint()
        wanted = (source, repr(sorted((name, value) for name, value in request.items() if value)))
        if wanted not in self._exported:
            output = self.folder / f"bundle-{len(self._exported)}"
            asked = ExportRequest(str(source), output, threads=1, **request)
            self._exported[wanted] = export(asked, lambda stage, done: None)
        return self._exported[wanted]

    @cached_property
    def calibration(self) -> Path:
        """A folder of two pictures and questions."""
        folder = self.folder / "calibration"
        folder.mkdir()
        lines = []
        for index, question in enumerate(("What colour is it?", "And this?")):
            Image.new("RGB", (60 + 40 * index, 50), (200, 30 * index, 10)).save(folder / f"{index}.png")
            lines.append(json.dumps({"image": f"{index}.png", "question": question, "answer": "Red."}))
        (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return folder

    def bundle(self, **request: Any) -> Path:
        return self.export(**request).path


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
