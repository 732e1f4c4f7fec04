"""Placement: which processor (neural engine, GPU, CPU) runs each operation of a part, of Core ML and on NVIDIA cards.

The system plans it on this machine; where it cannot be asked, it is predicted from published constraints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edge import engines
from edge.bundle.manifest import Bundle, Part
from edge.devices import nvidia
from edge.errors import UsageError
from edge.formats import onnx_graph

ONNX = "onnxruntime"
# Of the operators of our graphs: what CUDA has no kernel for (ONNX Runtime's docs/OperatorKernels.md).
HALF_ONLY, HALF_SCHEMES = ("GroupQueryAttention",), ("w16a16", "w4a16")
CUDA_LACKS = {
    "DynamicQuantizeLinear": "no CUDA kernel",
    "MatMulIntegerToFloat": "no CUDA kernel",
    "GroupQueryAttention": "CUDA's kernel takes halves only",
}

Processor = Literal["ane", "gpu", "cpu", "gpu or cpu", "unknown"]


@dataclass(frozen=True)
class Placed:
    function: str
    operation: str
    name: str  # of what it gives
    processor: Processor
    why: str = ""  # not the neural engine; or what it costs there


@dataclass(frozen=True)
class Placement:
    covers: tuple[str, ...]
    engine: str  # whose word it is
    predicted: bool
    operations: tuple[Placed, ...]


def placements(bundle: Bundle) -> tuple[Placement, ...]:
    """Of each part whose format is placed op by op. Raises UsageError where there is none, EngineError where a part
    does not open."""
    found = []
    for part in bundle.manifest.parts:
        if part.format == "onnx":
            found.append(_on_cuda(bundle, part))
            continue
        for engine in engines.opening(part.format, engines.installed_engines(evaluators=True))[:1]:
            opener = engines.module(engine.name)
            if hasattr(opener, "placement"):
                operations = tuple(opener.placement(bundle.files(part)))
                predicted = engine.name in engines.evaluator_names()
                found.append(Placement(part.covers, engine.name, predicted, operations))
    if not found:
        raise UsageError(
            f"{bundle.path} has no part whose operations are placed one by one: ONNX's are, and Core ML's with "
            "coremltools",
            hint="edge export CKPT -o OUT --format coreml; pip install 'edge-vlm[export]'",
        )
    return tuple(found)


def _on_cuda(bundle: Bundle, part: Part) -> Placement:
    """As ONNX Runtime tells where a card is, else as the table of its kernels says."""
    files = bundle.files(part)
    if nvidia.inspect().card and not engines.provider_refusals(ONNX).get("cuda", ""):
        return Placement(part.covers, ONNX, False, tuple(engines.module(ONNX).placement(files)))
    operations = (_predicted(*node, scheme=part.scheme) for node in onnx_graph.operators(files.files[0]))
    return Placement(part.covers, ONNX, True, tuple(operations))


def _predicted(operator: str, gives: str, scheme: str) -> Placed:
    why = CUDA_LACKS.get(operator, "")
    if why and not (operator in HALF_ONLY and scheme in HALF_SCHEMES):
        return Placed("main", operator, gives, "cpu", why)
    return Placed("main", operator, gives, "gpu")


def to_json(found: Sequence[Placement]) -> dict[str, Any]:
    return {"parts": [asdict(placement) for placement in found]}
