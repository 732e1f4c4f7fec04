"""Which operations the neural engine would take: a prediction by what Apple and others published, not a measurement.

It computes in half precision, on shapes that are known beforehand, of at most 16384 along an axis and five axes; its
buffers' last axis is padded to 64 bytes (apple/ml-ane-transformers; coremltools' guide on flexible shapes). What it
does not take runs on the GPU or the processor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from edge.planning.placement import Placed
from exporters.mil import compressed
from exporters.mil.function import Function
from exporters.mil.values import Type

LONGEST = 16384
MOST_AXES = 5
ALIGNED = 32  # halves


def placed(name: str, function: Function) -> Iterator[Placed]:
    """Each operation but the constants."""
    known = dict(function.inputs)
    for op in function.operations:
        if op.type == "const" or op.type in compressed.TABLE:
            continue
        known |= dict(zip(op.outputs, op.declared, strict=True))
        values = [*(known[given] for given in op.names if given in known), *op.declared]
        why = refusal(values)
        output = op.outputs[0] if op.outputs else ""
        yield Placed(name, op.type, output, "gpu or cpu" if why else "ane", why or cost(op.declared))


def counted(name: str, function: Function) -> dict[str, Any]:
    """How many operations for the neural engine, and how many not, by the first reason that was found."""
    reasons = Counter(op.why if op.processor != "ane" else "" for op in placed(name, function))
    return {"ane": reasons.pop("", 0), "gpu_or_cpu": dict(sorted(reasons.items()))}


def refusal(values: Sequence[Type]) -> str:
    """Why the neural engine does not take an operation on such values; empty where nothing is known against it."""
    if any(None in value.shape for value in values):
        return "shape not known beforehand"
    if any(value.dtype not in (torch.float16, torch.bool) for value in values):
        return "not half precision"
    if any(len(value.shape) > MOST_AXES for value in values):
        return f"more than {MOST_AXES} axes"
    if any(size > LONGEST for value in values for size in value.shape if size is not None):
        return f"an axis longer than {LONGEST}"
    return ""


def cost(outputs: Sequence[Type]) -> str:
    short = [value.shape[-1] for value in outputs if value.shape and (value.shape[-1] or ALIGNED) < ALIGNED]
    return f"a last axis of {short[0]} is padded to {ALIGNED}" if short else ""
