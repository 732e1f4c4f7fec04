"""Which operations the neural engine would take: a prediction by what Apple and others published, not a measurement.

It computes in half precision, on shapes that are known beforehand, of at most 16384 along an axis and five axes
(apple/ml-ane-transformers; coremltools' guide on flexible shapes). What it does not take runs on the GPU.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from coremltools.converters.mil.mil import Function, Operation, types
from coremltools.converters.mil.mil.types.symbolic import any_symbolic

LONGEST = 16384
MOST_AXES = 5


def predicted(function: Function) -> dict[str, Any]:
    """How many operations for the neural engine, and how many not, by the first reason that was found."""
    computing = [op for op in function.operations if op.op_type != "const" and not op.op_type.startswith("constexpr_")]
    reasons = Counter(reason(op) for op in computing)
    return {"ane": reasons.pop(None, 0), "gpu_or_cpu": {str(why): count for why, count in sorted(reasons.items())}}


def reason(op: Operation) -> str | None:
    """Why the neural engine does not take it; None where nothing is known against it."""
    computed = [v for v in (*op.get_flattened_inputs(), *op.outputs) if v.op is None or v.op.op_type != "const"]
    shapes = [tuple(v.shape) for v in computed]
    if any(any_symbolic(shape) for shape in shapes):
        return "shape not known beforehand"
    if any(v.dtype not in (types.fp16, types.bool) for v in computed):
        return "not half precision"
    if any(len(shape) > MOST_AXES for shape in shapes):
        return f"more than {MOST_AXES} axes"
    if any(size > LONGEST for shape in shapes for size in shape):
        return f"an axis longer than {LONGEST}"
    return None
