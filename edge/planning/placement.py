"""Placement: which processor (neural engine, GPU, CPU) runs each operation of a part.

The system plans it on this machine; where it cannot be asked, it is predicted from published constraints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edge import engines
from edge.bundle.manifest import Bundle
from edge.errors import UsageError

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
        for engine in engines.opening(part.format, engines.installed_engines(evaluators=True))[:1]:
            opener = engines.module(engine.name)
            if hasattr(opener, "placement"):
                operations = tuple(opener.placement(bundle.files(part)))
                predicted = engine.name in engines.evaluator_names()
                found.append(Placement(part.covers, engine.name, predicted, operations))
    if not found:
        raise UsageError(
            f"{bundle.path} has no part whose operations are placed one by one: Core ML's are, with coremltools",
            hint="edge export CKPT -o OUT --format coreml; pip install 'edge-vlm[export]'",
        )
    return tuple(found)


def to_json(found: Sequence[Placement]) -> dict[str, Any]:
    return {"parts": [asdict(placement) for placement in found]}
