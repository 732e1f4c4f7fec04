"""Graph of an ONNX file on the CPU: a session of ONNX Runtime, and the arrays that are bound to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from edge.decoders.function_graph import misfit, require_names
from edge.errors import EngineError, first_line
from edge.types import Array, TensorSpec

CPU = "CPUExecutionProvider"
WARNING = 2
_FATAL = 4
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class OnnxGraph:
    """Each array stays bound until another stands in its place, so that a decoding step whose caches did not move costs
    no binding. The arrays themselves are what the library reads and writes: nothing is copied."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._inputs = {port.spec.name: port for port in map(_Port, session.get_inputs())}
        self._outputs = {port.spec.name: port for port in map(_Port, session.get_outputs())}
        self._binding = session.io_binding()
        for name in self._outputs:
            self._binding.bind_output(name)  # fixes the order of get_outputs
        self._bound: dict[str, Array] = {}  # what is bound now; keeps that memory alive
        self._written: dict[str, Array] = {}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(port.spec for port in self._inputs.values())

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(port.spec for port in self._outputs.values())

    def run(self, feeds: Mapping[str, Array], into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """See Graph. Raises EngineError when an array does not fit the graph, or the library fails."""
        into = into or {}
        require_names(self._inputs.keys(), self._outputs.keys(), feeds, into)
        try:
            self._bind(feeds, into)
            self._session.run_with_iobinding(self._binding)
            return self._collect(into)
        except EngineError:
            raise
        except Exception as error:  # its errors share no base class
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> EngineError:
        return EngineError(f"onnxruntime failed: {first_line(error)}")

    def _bind(self, feeds: Mapping[str, Array], into: Mapping[str, Array]) -> None:
        for name, array in feeds.items():
            if self._bound.get(name) is not array:
                self._bind_input(name, array)
                self._bound[name] = array
        for name in self._outputs:
            target = into.get(name)
            if target is None:
                # Bound anew each time: a result of the last run would be taken for memory to write into.
                self._binding.bind_output(name)
                self._written.pop(name, None)
            elif self._written.get(name) is not target:
                self._bind_output(name, target)
                self._written[name] = target

    def _bind_input(self, name: str, array: Array) -> None:
        self._inputs[name].check(array)
        self._binding.bind_cpu_input(name, array)  # refers to the array's memory

    def _bind_output(self, name: str, target: Array) -> None:
        self._outputs[name].check(target)
        if not target.flags.writeable:
            raise EngineError(f"the array for {name} cannot be written")
        self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(target))

    def _collect(self, into: Mapping[str, Array]) -> dict[str, Array]:
        if len(into) == len(self._outputs):
            return dict(into)
        values = self._binding.get_outputs()
        return {name: into[name] if name in into else values[index].numpy() for index, name in enumerate(self._outputs)}


def open_session(source: str | bytes, threads: int, debug: bool = False) -> Any:
    return ort.InferenceSession(source, settings(threads, debug), providers=[CPU])


def settings(threads: int, debug: bool) -> Any:
    # Not session.set_denormal_as_zero: it changes the arithmetic of the calling thread, numpy's too.
    made = ort.SessionOptions()
    made.intra_op_num_threads = threads
    made.inter_op_num_threads = 1
    made.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    made.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    made.log_severity_level = WARNING if debug else _FATAL
    # A memory pattern is planned and kept for every combination of shapes, and each decoding step brings a new one.
    made.enable_mem_pattern = False
    return made


class _Port:
    """An input or output, and the check of what is bound to it: prepared, as a step may bind a hundred arrays."""

    def __init__(self, node: Any) -> None:
        shape = tuple(d if isinstance(d, int) else d or f"{node.name}.{axis}" for axis, d in enumerate(node.shape))
        self.spec = TensorSpec(node.name, _DTYPES.get(node.type, node.type), shape)
        self._dtype = np.dtype(_DTYPES[node.type]) if node.type in _DTYPES else None
        self._rank = len(shape)
        self._fixed = tuple((axis, size) for axis, size in enumerate(shape) if isinstance(size, int))

    def check(self, array: Array) -> None:
        """The library is given a bare address: what it reads and writes there must be what it thinks."""
        shape, flags = array.shape, array.flags
        if len(shape) != self._rank or array.dtype != self._dtype:
            raise misfit(self.spec, array)
        for axis, size in self._fixed:
            if shape[axis] != size:
                raise misfit(self.spec, array)
        if not (flags.c_contiguous and flags.aligned):
            raise EngineError(f"the array for {self.spec.name} does not lie in one piece")
