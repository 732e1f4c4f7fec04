"""From methods to a program: traced, handed to XNNPACK, its memory planned, written."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack._passes import XNNPACKPassManager
from executorch.backends.xnnpack._passes.channels_last_tagged_reshape_pass import ChannelsLastTaggedReshapePass
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.backend.backend_details import CompileSpec, PreprocessResult
from executorch.exir.lowered_backend_module import get_lowered_submodules
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
from executorch.exir.tensor import TensorSpec
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from edge import plugins
from edge.errors import EdgeError, first_line
from exporters.formats import Progress

BACKENDS = "exporters.formats.executorch.backends"
_KEPT = 2  # the arena that MemoryPlanningPass gives to buffers that a method writes to


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
    """A program with these methods, and methods that give `constants`. `backend`: one of `backends`, before XNNPACK.

    Raises EdgeError where torch or ExecuTorch cannot make one of them."""
    try:
        _write(path, methods, constants, progress, backend)
    except (EdgeError, ImportError, OSError, MemoryError):
        raise
    except Exception as error:
        raise EdgeError(
            f"ExecuTorch: no program can be made of {', '.join(methods)}: {first_line(error)}",
            hint="another --format, and report this",
        ) from error


def _write(
    path: Path,
    methods: Mapping[str, Method],
    constants: Mapping[str, Any],
    progress: Progress,
    backend: str | None,
) -> None:
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
        progress(0.8)
        exported = [*traced.values(), *map(lowered.exported_program, traced)]
        program = lowered.to_executorch(
            ExecutorchBackendConfig(
                do_quant_fusion_and_const_prop=True,
                # Without shared mutable buffers one method's results lie where another keeps its cache, unsaid.
                memory_planning_pass=_Planning(alloc_graph_input=False, share_mutable_buffers=True),
                sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
            )
        )
        with path.open("wb") as file:
            program.write_to_file(file)
        _empty(exported)
    progress(1.0)


def _traced(method: Method) -> ExportedProgram:
    axes = ({1: Dim("sequence_length", min=1, max=method.longest)} if method.longest else None,)
    shapes = (*axes, *(None for _ in method.inputs[1:]))
    with torch.no_grad():
        return export(method.module, method.inputs, dynamic_shapes=shapes, strict=False)


class _Planning(MemoryPlanningPass):  # type: ignore[misc]
    def run_multimethod(self) -> None:
        """Only a method that keeps something has an arena for it: a runner allocates what each lists."""
        super().run_multimethod()
        for module in self.state.graph_modules:
            specs = [node.meta.get("spec") for node in module.graph.nodes]
            if not any(isinstance(spec, TensorSpec) and spec.mem_id == _KEPT for spec in specs):
                del module.meta["non_const_buffer_sizes"][_KEPT]


def _empty(programs: Iterable[ExportedProgram]) -> None:
    """Caches of torch and of the partitioner keep graphs for as long as the process lives: not their weights, too."""
    for program in programs:
        for _, part, _ in get_lowered_submodules(program.graph_module):
            _let_go(part.original_module)
            if part.named_data_store_output is not None:
                part.named_data_store_output.buffers.clear()
        _let_go(program)


def _let_go(program: ExportedProgram) -> None:
    program.state_dict.clear()
    program.constants.clear()


class _FewPasses(XNNPACKPassManager):  # type: ignore[misc]
    """XNNPACK's own 17 passes trace each part of a program anew, and all but this one find nothing in ours."""

    def __init__(self, exported_program: ExportedProgram, passes: Any = None) -> None:
        super().__init__(exported_program, [ChannelsLastTaggedReshapePass])


@contextmanager
def _quickly() -> Iterator[None]:
    """Minutes less: few passes, and no search for garbage among millions of objects that all live. And quietly."""
    every, preprocess, collecting = xnnpack_preprocess.XNNPACKPassManager, XnnpackBackend.preprocess, gc.isenabled()
    before = logging.root.manager.disable

    def and_let_go(copied: ExportedProgram, specs: list[CompileSpec]) -> PreprocessResult:
        made = preprocess(copied, specs)
        _let_go(copied)  # it refers to itself, and would hold a copy of its weights
        return made

    xnnpack_preprocess.XNNPACKPassManager = _FewPasses
    XnnpackBackend.preprocess = staticmethod(and_let_go)
    gc.disable()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        xnnpack_preprocess.XNNPACKPassManager = every
        XnnpackBackend.preprocess = staticmethod(preprocess)
        logging.disable(before)
        if collecting:
            gc.enable()
        gc.collect()  # programs refer to themselves
