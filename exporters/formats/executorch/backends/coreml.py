"""Core ML: processor, graphics or neural engine of Apple's devices, in half precision."""

from __future__ import annotations

from typing import Any

import coremltools as ct
from executorch.backends.apple.coreml.compiler import CoreMLBackend
from executorch.backends.apple.coreml.partition import CoreMLPartitioner

DIM_ORDER = True


def partitioner() -> Any:
    specs = CoreMLBackend.generate_compile_specs(
        compute_precision=ct.precision.FLOAT16, minimum_deployment_target=ct.target.iOS17
    )
    return CoreMLPartitioner(compile_specs=specs)
