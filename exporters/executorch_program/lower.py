"""From methods to a program: traced, handed to XNNPACK, its memory planned, written."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack._passes import XNNPACKPassManager
from executorch.backends.xnnpack._passes.channels_last_tagged_reshape_pass import ChannelsLastTaggedReshapePass
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from edge import plugins
from exporters.formats import Progress

BACKENDS = "exporters.executorch_program.backends"


@dataclass(frozen=True)
class Method:
    module: nn.Module
    inputs: tuple[Tensor, ...]
    longest: int = 0  # of axis 1 of the first input, where any length from 1 on is taken


def write(
    path: Path,
    methods: Mapping[str, Method],
    constants: Mapping[str, Any],
    progress: Progress,
    backend: str | None = None,
) -> None:
    """A program with these methods, and methods that give `constants`. `backend`: one of `backends`, before XNNPACK."""
    other = plugins.load(BACKENDS, backend) if backend else None
    config = EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=other is None or not other.DIM_ORDER)
    partitioners = [XnnpackPartitioner()] if other is None else [other.partitioner(), XnnpackPartitioner()]
    with _quickly():
        traced = {name: _traced(method) for name, method in methods.items()}
        progress(0.2)
        lowered = to_edge_transform_and_lower(
            traced,
            partitioner=dict.fromkeys(traced, partitioners),
            constant_methods=dict(constants),
            compile_config=config,
        )
        del traced
        progress(0.8)
        program = lowered.to_executorch(
            ExecutorchBackendConfig(
                do_quant_fusion_and_const_prop=True,
                # Without shared mutable buffers one method's results lie where another keeps its cache, unsaid.
                memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False, share_mutable_buffers=True),
                sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
            )
        )
        del lowered
        with path.open("wb") as file:
            program.write_to_file(file)
    progress(1.0)


def _traced(method: Method) -> ExportedProgram:
    axes = ({1: Dim("sequence_length", min=1, max=method.longest)} if method.longest else None,)
    shapes = (*axes, *(None for _ in method.inputs[1:]))
    with torch.no_grad():
        return export(method.module, method.inputs, dynamic_shapes=shapes, strict=False)


class _FewPasses(XNNPACKPassManager):  # type: ignore[misc]
    """XNNPACK's own 17 passes trace each part of a program anew, and all but this one find nothing in ours."""

    def __init__(self, exported_program: ExportedProgram, passes: Any = None) -> None:
        super().__init__(exported_program, [ChannelsLastTaggedReshapePass])


@contextmanager
def _quickly() -> Iterator[None]:
    """Minutes less: few passes, and no search for garbage among millions of objects that all live. And quietly."""
    every, collecting = xnnpack_preprocess.XNNPACKPassManager, gc.isenabled()
    before = logging.root.manager.disable
    xnnpack_preprocess.XNNPACKPassManager = _FewPasses
    gc.disable()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        xnnpack_preprocess.XNNPACKPassManager = every
        logging.disable(before)
        if collecting:
            gc.enable()
        gc.collect()  # programs refer to themselves, and to all weights
