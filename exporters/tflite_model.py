"""A TFLite file under construction: subgraphs that share their buffers, and one signature for each.

The schema is TensorFlow Lite's `schema.fbs`, version 3, as ai-edge-litert brings it. The numbers are not put through
the flatbuffer builder, which would hold them twice: they are appended behind the packed structure, and each buffer is
pointed at its place. No torch is needed here: tests of the engine write their graphs with it, on a device too.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edge.types import Array

VERSION, IDENTIFIER = 3, b"TFL3"
_ALIGNMENT = 64  # of a buffer in the file; the schema asks for 16
# A flatbuffer ends below 2 GiB, its structure included; more numbers lie behind it, found by 64-bit offsets.
_INLINE = (1 << 31) - (1 << 27)
_TYPES = {"float32": "FLOAT32", "float16": "FLOAT16", "int32": "INT32", "int8": "INT8", "uint8": "UINT8"}
_DATA, _OFFSET, _SIZE = 4, 6, 8  # vtable entries of a Buffer

Numbers = Callable[[], Array]


class Model:
    """Buffers and operator codes, which all subgraphs share."""

    def __init__(self) -> None:
        self._numbers: list[Numbers | None] = [None]  # the first buffer is empty by convention
        self._sizes = [0]
        self._shared: dict[Any, int] = {}
        self._codes: dict[tuple[int, int], int] = {}
        self._subgraphs: list[Any] = []
        self._signatures: list[Any] = []

    def buffer(self, key: Any, bytes: int, numbers: Numbers) -> int:
        """The buffer of that key; the numbers are asked for when the file is written."""
        if key not in self._shared:
            self._shared[key] = len(self._numbers)
            self._numbers.append(numbers)
            self._sizes.append(bytes)
        return self._shared[key]

    def code(self, operator: str, version: int) -> int:
        number = getattr(schema.BuiltinOperator, operator)
        return self._codes.setdefault((number, version), len(self._codes))

    def add(self, graph: Graph) -> None:
        """A finished subgraph, and its signature."""
        subgraph = schema.SubGraphT()
        subgraph.name, subgraph.tensors, subgraph.operators = graph.name, graph.tensors, graph.operators
        subgraph.inputs, subgraph.outputs = list(graph.inputs.values()), list(graph.outputs.values())
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = graph.name, len(self._subgraphs)
        signature.inputs, signature.outputs = (_map(named) for named in (graph.inputs, graph.outputs))
        self._subgraphs.append(subgraph)
        self._signatures.append(signature)

    def save(self, path: Path, progress: Callable[[float], None]) -> None:
        inside = sum(self._sizes) < _INLINE
        head = self._pack(inside)
        places = _places(len(head), self._sizes)
        _point(head, places, self._sizes, inside)
        with path.open("wb") as file:
            file.write(head)
            for index, (place, size, numbers) in enumerate(zip(places, self._sizes, self._numbers, strict=True)):
                if numbers is None:
                    continue
                file.write(bytes(place - 4 - file.tell()))
                file.write(struct.pack("<I", size if inside else 0))
                data: Any = np.ascontiguousarray(numbers())
                assert data.nbytes == size
                file.write(memoryview(data).cast("B"))
                progress((index + 1) / len(places))
            file.write(bytes(-file.tell() % _ALIGNMENT))

    def _pack(self, inside: bool) -> bytearray:
        model = schema.ModelT()
        model.version, model.description = VERSION, "edge-vlm"
        model.subgraphs, model.signatureDefs = self._subgraphs, self._signatures
        model.operatorCodes = [_code(number, version) for number, version in self._codes]
        # Room for each buffer's place, which is written over when it is known.
        empty: dict[str, Any] = {"data": np.empty(0, np.uint8)} if inside else {"offset": 1, "size": 1}
        model.buffers = [schema.BufferT(**(empty if size else {})) for size in self._sizes]
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
        return bytearray(builder.Output())


class Graph:
    """One subgraph. Tensors are numbers into it; all of them are float32 unless told otherwise. Whoever runs it may
    change the sizes that are `varying`."""

    def __init__(self, model: Model, name: str, varying: frozenset[int] = frozenset()) -> None:
        self.model = model
        self.name = name
        self.varying = varying
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.inputs: dict[str, int] = {}
        self.outputs: dict[str, int] = {}
        self._constants: dict[Any, int] = {}

    def tensor(self, shape: Sequence[int], *, name: str = "", kind: str = "FLOAT32", buffer: int = 0) -> int:
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = list(shape), getattr(schema.TensorType, kind), buffer
        tensor.name = name or f"t{len(self.tensors)}"
        tensor.hasRank = True
        if self.varying.intersection(shape):
            assert not buffer, f"a constant of {list(shape)} is as large as what varies"
            tensor.shapeSignature = self.free(shape)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def free(self, shape: Sequence[int]) -> list[int]:
        """The shape with -1 for what varies."""
        return [-1 if size in self.varying else size for size in shape]

    def stored(self, name: str, array: Array) -> int:
        """A constant that all subgraphs share under its name."""
        if name not in self._constants:
            buffer = self.model.buffer(name, array.nbytes, lambda: array)
            self._constants[name] = self.tensor(array.shape, name=name, kind=_TYPES[str(array.dtype)], buffer=buffer)
        return self._constants[name]

    def constant(self, value: Any, dtype: str = "int32") -> int:
        """A small constant: axes, shapes, single numbers."""
        array = np.array(value, dtype)
        return self.stored(f"{dtype}:{array.shape}:{array.tolist()}", array)

    def quantized(self, name: str, make: Callable[[], int]) -> int:
        """The tensor of that name in this subgraph, made once."""
        if name not in self._constants:
            self._constants[name] = make()
        return self._constants[name]

    def op(
        self,
        operator: str,
        inputs: Sequence[int],
        shapes: Sequence[Sequence[int]],
        options: Mapping[str, Any] | None = None,
        *,
        table: str | None = None,
        version: int = 1,
    ) -> list[int]:
        """Append an operator; `options` are the fields of its options table. A missing input is -1."""
        node = schema.OperatorT()
        node.opcodeIndex = self.model.code(operator, version)
        node.inputs, node.outputs = list(inputs), [self.tensor(shape) for shape in shapes]
        if table is not None:
            node.builtinOptionsType = getattr(schema.BuiltinOptions, table)
            node.builtinOptions = getattr(schema, f"{table}T")()
            for field, value in (options or {}).items():
                assert hasattr(node.builtinOptions, field), field
                setattr(node.builtinOptions, field, value)
        self.operators.append(node)
        return node.outputs


def _map(named: Mapping[str, int]) -> list[Any]:
    return [schema.TensorMapT(name=name, tensorIndex=index) for name, index in named.items()]


def _code(number: int, version: int) -> Any:
    # The old field is a byte, and its last value says that the number stands in the new one.
    return schema.OperatorCodeT(deprecatedBuiltinCode=min(number, 127), builtinCode=number, version=version)


def _places(start: int, sizes: Sequence[int]) -> list[int]:
    """Where each buffer's numbers begin, with room before them for a vector's length."""
    places: list[int] = []
    for size in sizes:
        place = -(-(start + 4) // _ALIGNMENT) * _ALIGNMENT
        places.append(place)
        start = place + size if size else start
    return places


def _point(head: bytearray, places: Sequence[int], sizes: Sequence[int], inside: bool) -> None:
    """Let each buffer of the packed structure find its numbers."""
    model = schema.Model.GetRootAs(head)
    for index, (place, size) in enumerate(zip(places, sizes, strict=True)):
        if not size:
            continue
        table = model.Buffers(index)._tab
        if inside:
            at = table.Pos + table.Offset(_DATA)
            struct.pack_into("<I", head, at, place - 4 - at)
        else:
            for entry, value in ((_OFFSET, place), (_SIZE, size)):
                struct.pack_into("<Q", head, table.Pos + table.Offset(entry), value)
