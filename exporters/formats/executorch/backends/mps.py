"""Metal Performance Shaders: the graphics processor of Apple's devices, in half precision."""

from __future__ import annotations

from typing import Any

from executorch.backends.apple.mps.partition import MPSPartitioner
from executorch.exir.backend.compile_spec_schema import CompileSpec

DIM_ORDER = False


def partitioner() -> Any:
    return MPSPartitioner([CompileSpec("use_fp16", bytes([True]))])
