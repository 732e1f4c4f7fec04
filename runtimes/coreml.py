"""Engine for `coreml` parts: Core ML through coremltools, on macOS 15 and newer."""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np

from edge.decoders.embedding_table import EmbeddingTable
from edge.decoders.function_graph import FunctionGraph
from edge.decoders.stateful import DECODE, PREFILL, StatefulDecoder
from edge.errors import EngineError, first_line
from edge.planning.placement import Placed, Processor
from edge.types import Array, ComputeUnits, Decoder, EngineFacts, Graph, OpenOptions, PartFiles

ENGINE: EngineFacts = {
    "formats": ("coreml",),
    "package": "coremltools",
    "systems": ("darwin",),
    "elsewhere": "Core ML runs on macOS 15 and iOS 18 only; edge verify proves the bundle on any machine",
    "cache_item": 2,  # its states are fp16
}

_LEAST = 15  # of macOS: the first that keeps states
_UNITS: dict[ComputeUnits, str] = {"all": "ALL", "cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE"}
_DEVICES: dict[str, Processor] = {
    "MLNeuralEngineComputeDevice": "ane",
    "MLGPUComputeDevice": "gpu",
    "MLCPUComputeDevice": "cpu",
}


def version() -> str:
    return str(ct.__version__)


def open(part: PartFiles, options: OpenOptions) -> Graph | Decoder:
    """See `edge.types.Runtime`. A package is compiled for this machine each time that it is opened."""
    release = platform.mac_ver()[0]
    if sys.platform != "darwin" or int(release.partition(".")[0] or 0) < _LEAST:
        raise EngineError(
            f"{ENGINE['elsewhere']}: this is {f'macOS {release}' if release else platform.system()}",
            hint=f"edge verify {part.files[0].parents[1]}",
        )
    package = part.files[0].parent  # the first file is the package's list
    if part.decoder is None:
        model = _load(package, options, None)  # its default function
        return FunctionGraph(part, lambda feeds: _predict(model, feeds, None))
    models = {name: _load(package, options, name) for name in (PREFILL, DECODE)}
    table = EmbeddingTable.open(part.files, part.decoder.vocab, part.decoder.hidden)
    return StatefulDecoder(CoreMLDecoder(models), table, options.context)


def placement(part: PartFiles) -> Iterator[Placed]:
    """Where each operation of its functions will run on this machine, by Core ML's own plan; constants have none."""
    package = part.files[0].parent
    try:
        with tempfile.TemporaryDirectory() as folder:
            compiled = ct.models.utils.compile_model(str(package), str(Path(folder, f"{package.stem}.mlmodelc")))
            plan = ct.models.compute_plan.MLComputePlan.load_from_path(str(compiled), ct.ComputeUnit.ALL)
            for name, function in plan.model_structure.program.functions.items():
                for op in function.block.operations:
                    usage = plan.get_compute_device_usage_for_mlprogram_operation(op)
                    if usage is not None:
                        able = sorted({_processor(device) for device in usage.supported_compute_devices})
                        chosen = _processor(usage.preferred_compute_device)
                        why = "" if chosen == "ane" else f"can run on {', '.join(able)}"
                        output = op.outputs[0].name if op.outputs else ""
                        yield Placed(name, op.operator_name, output, chosen, why)
    except Exception as error:  # its errors share no base class
        raise EngineError(
            f"Core ML cannot plan {package.name}: {first_line(error)}", hint=f"edge verify {package.parent}"
        ) from error


def _processor(device: Any) -> Processor:
    return _DEVICES.get(type(device).__name__, "unknown")


class CoreMLDecoder:
    """The functions of a decoder's package, which share one state."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        self._models = models
        self._state = models[PREFILL].make_state()

    def run(self, function: str, feeds: Mapping[str, Array]) -> Array:
        return _predict(self._models[function], feeds, self._state)["logits"]


def _load(package: Path, options: OpenOptions, function: str | None) -> Any:
    units = ct.ComputeUnit[_UNITS[options.units]]
    try:
        return ct.models.MLModel(str(package), compute_units=units, function_name=function)
    except Exception as error:  # its errors share no base class
        raise EngineError(
            f"Core ML cannot open {package.name}: {first_line(error)}", hint=f"edge verify {package.parent}"
        ) from error


def _predict(model: Any, feeds: Mapping[str, Array], state: Any) -> dict[str, Array]:
    try:
        found = model.predict(dict(feeds), state=state)
    except Exception as error:  # its errors share no base class
        raise EngineError(f"Core ML failed: {first_line(error)}") from error
    return {name: np.asarray(array) for name, array in found.items()}
