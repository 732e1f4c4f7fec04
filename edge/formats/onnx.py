"""Writer of small ONNX models, field by field as in `onnx.proto`, to probe a library with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge.types import Array, TensorSpec

CONTRIBUTED = "com.microsoft"  # the domain of ONNX Runtime's own operators
_IR, _OPSETS = 10, (("", 21), (CONTRIBUTED, 1))
_PROTO = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7}  # of TensorProto.DataType
_INT, _TENSOR = 2, 4  # of AttributeProto.AttributeType


@dataclass(frozen=True)
class Node:
    op: str
    inputs: tuple[str, ...]
    output: str
    settings: Mapping[str, int | Array] = field(default_factory=dict)
    domain: str = ""


def filled(name: str, shape: Sequence[int], value: int | float, dtype: str) -> tuple[Node, dict[str, Array]]:
    """A constant that takes no room in the model: the node that makes it, and the tensor which that needs."""
    node = Node("ConstantOfShape", (f"{name}.shape",), name, {"value": np.array([value], dtype)})
    return node, {f"{name}.shape": np.array(shape, np.int64)}


def model(
    nodes: Sequence[Node], tensors: Mapping[str, Array], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> bytes:
    """`nodes` in the order in which they are computed; `tensors` are their constants."""
    graph = b"".join(_field(1, _node(node)) for node in nodes) + _text(2, "graph")
    graph += b"".join(_field(5, _tensor(array) + _text(8, name)) for name, array in tensors.items())
    graph += b"".join(_field(number, _port(spec)) for number, specs in ((11, inputs), (12, outputs)) for spec in specs)
    opsets = b"".join(_field(8, _text(1, name) + _number(2, version)) for name, version in _OPSETS)
    return _number(1, _IR) + _field(7, graph) + opsets


def _node(node: Node) -> bytes:
    written = b"".join(_text(1, name) for name in node.inputs) + _text(2, node.output) + _text(4, node.op)
    for name, value in node.settings.items():
        if isinstance(value, int):
            written += _field(5, _text(1, name) + _number(3, value) + _number(20, _INT))
        else:
            written += _field(5, _text(1, name) + _field(5, _tensor(value)) + _number(20, _TENSOR))
    return written + _text(7, node.domain)


def _tensor(array: Array) -> bytes:
    sizes = b"".join(_number(1, size) for size in array.shape)
    return sizes + _number(2, _PROTO[str(array.dtype)]) + _field(9, array.tobytes())


def _port(spec: TensorSpec) -> bytes:
    axes = b"".join(_field(1, _number(1, size) if isinstance(size, int) else _text(2, size)) for size in spec.shape)
    return _text(1, spec.name) + _field(2, _field(1, _number(1, _PROTO[spec.dtype]) + _field(2, axes)))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    low = bytes([value & 127 | (128 if value > 127 else 0)])
    return low + _varint(value >> 7) if value > 127 else low
