"""Reader of ONNX files: whether one is a plain graph of the operators that this project writes. Reads no weights.

Such a file is a program: it can loop, call functions of its own, and name other files. What is none of ours is refused
here before a library runs it. Numbers of fields are those of onnx.proto; the encoding is protocol buffers'.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from edge.devices import file_facts
from edge.errors import BundleError

# Domain -> operators
OPERATORS: Mapping[str, Collection[str]] = {
    "": {
        "Abs",
        "Add",
        "AveragePool",
        "Cast",
        "CastLike",
        "Concat",
        "Constant",
        "Conv",
        "Div",
        "DynamicQuantizeLinear",
        "Expand",
        "Floor",
        "Gather",
        "GatherND",
        "Gelu",
        "GreaterOrEqual",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LayerNormalization",
        "MatMul",
        "Max",
        "Min",
        "Mul",
        "Range",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Reshape",
        "Shape",
        "Sigmoid",
        "Sign",
        "SimplifiedLayerNormalization",
        "Slice",
        "Softmax",
        "Split",
        "Squeeze",
        "Sub",
        "Tanh",
        "Transpose",
        "Unsqueeze",
        "Where",
    },
    "com.microsoft": {
        "GroupQueryAttention",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "MultiHeadAttention",
        "QuickGelu",
        "SkipSimplifiedLayerNormalization",
    },
}
_FACT = "onnx 1"  # what is remembered of a file, and the version of what is looked at
_MOST = 1 << 20  # fields that are looked at
_LONGEST = 1 << 12  # bytes of a name
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # wire types
# The fields that files of ours have, of each kind of message; _ONCE: those of them that may not come again.
_MODEL = {1: _VARINT, 2: _BYTES, 3: _BYTES, 4: _BYTES, 5: _VARINT, 6: _BYTES, 7: _BYTES, 8: _BYTES}
_GRAPH = dict.fromkeys((1, 2, 5, 10, 11, 12, 13, 16), _BYTES)
_NODE = dict.fromkeys((1, 2, 3, 4, 5, 6, 7, 9), _BYTES)
_ATTRIBUTE = {1: _BYTES, 2: _FOUR, 3: _VARINT, 4: _BYTES, 5: _BYTES, 7: None, 8: None, 13: _BYTES, 20: _VARINT}
_TENSOR = {1: None, 2: _VARINT, 4: None, 5: None, 7: None, 8: _BYTES, 9: _BYTES, 12: _BYTES, 13: _BYTES, 14: _VARINT}
_NODE_OUTPUT, _NODE_TYPE, _NODE_DOMAIN, _EXTERNAL = 2, 4, 7, 1

Span = tuple[int, int]


class _Damage(Exception):
    pass


def check(path: Path, files: Sequence[Path]) -> None:
    """Raises BundleError on a file that is no ONNX model, computes with what no file of ours does, or takes numbers
    from a file that is not one of `files`, those of its part."""
    try:
        places: dict[str, int] = json.loads(file_facts.fact(path, _FACT, _places))
        listed = {file.name: file for file in files if file.parent == path.parent and file != path}
        for name, end in places.items():
            if name not in listed:
                raise _Damage(f"it takes numbers from {name!r}, which is no file of the part")
            if end > (size := listed[name].stat().st_size):
                raise _Damage(f"its numbers end at byte {end} of {name}, which has {size}")
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise BundleError(f"cannot read {path.name}: {error}", hint="copy or export it again") from error
    except _Damage as damage:
        raise BundleError(
            f"{path.name} is no ONNX file of ours: {damage}", hint="copy it again, or export the bundle again"
        ) from None


def operators(path: Path) -> tuple[tuple[str, str], ...]:
    """Each node's operator, and the name of what it gives, in the file's order. Raises BundleError on a file that
    `check` refuses."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data)
            reader.places()
            return tuple(reader.nodes)
    except (OSError, ValueError, _Damage) as error:
        raise BundleError(f"cannot read {path.name}: {error}", hint="copy or export it again") from error


def _places(path: Path) -> str:
    """The other files that it takes numbers from, and where those end, as JSON."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return json.dumps(_Reader(data).places())


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._left = _MOST
        self._places: dict[str, int] = {}
        self.nodes: list[tuple[str, str]] = []  # operator, and what it gives first

    def places(self) -> dict[str, int]:
        graphs = 0
        for number, value in self._fields((0, len(self._data)), _MODEL, "a model"):
            if number == 7:
                graphs += 1
                self._graph(value)
        if graphs != 1:
            raise _Damage(f"{graphs} graphs")
        return self._places

    def _graph(self, span: Span) -> None:
        for number, value in self._fields(span, _GRAPH, "a graph"):
            if number == 1:
                self._node(value)
            elif number == 5:
                self._tensor(value)

    def _node(self, span: Span) -> None:
        said: dict[int, str] = {}
        attributes, gives = [], ""
        for number, value in self._fields(span, _NODE, "a node"):
            if number in (_NODE_TYPE, _NODE_DOMAIN):
                if number in said:
                    raise _Damage("a node of two operators")
                said[number] = self._text(value)
            elif number == 5:
                attributes.append(value)
            elif number == _NODE_OUTPUT:
                gives = gives or self._text(value)
        domain, operator = said.get(_NODE_DOMAIN, ""), said.get(_NODE_TYPE, "")
        if operator not in OPERATORS.get(domain, ()):
            raise _Damage(f"it computes with {f'{domain}.' * bool(domain)}{operator}, which no file of ours does")
        self.nodes.append((operator, gives))
        for attribute in attributes:
            self._attribute(attribute, operator)

    def _attribute(self, span: Span, operator: str) -> None:
        for number, value in self._fields(span, _ATTRIBUTE, f"an attribute of {operator}"):
            if number == 5:
                self._tensor(value)

    def _tensor(self, span: Span) -> None:
        told: dict[str, str] = {}
        location = 0
        for number, value in self._fields(span, _TENSOR, "a tensor"):
            if number == 13:
                key, text = self._pair(value)
                if key in told:
                    raise _Damage(f"a tensor with two of {key!r}")
                told[key] = text
            elif number == 14:
                location = value[0]
        if not told and location != _EXTERNAL:
            return
        name, begin, size = told.get("location", ""), told.get("offset", "0"), told.get("length", "")
        if not (begin.isdecimal() and size.isdecimal() and len(begin) < 16 and len(size) < 16):
            raise _Damage(f"a tensor at {begin!r} of {size!r} bytes in {name!r}")
        self._places[name] = max(self._places.get(name, 0), int(begin) + int(size))

    def _pair(self, span: Span) -> tuple[str, str]:
        said = {number: self._text(value) for number, value in self._fields(span, {1: _BYTES, 2: _BYTES}, "a pair")}
        return said.get(1, ""), said.get(2, "")

    def _text(self, span: Span) -> str:
        begin, end = span
        if end - begin > _LONGEST:
            raise _Damage(f"a name of {end - begin} bytes")
        try:
            return self._data[begin:end].decode()
        except UnicodeDecodeError:
            raise _Damage("what should be text is not") from None

    def _fields(self, span: Span, known: Mapping[int, int | None], what: str) -> Iterator[tuple[int, Span]]:
        """Number and place of each field of a message, or its value twice where it is a varint; `known`: the wire type
        of each that there may be, None where it may be packed."""
        at, end = span
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise _Damage(f"more than {_MOST:,} fields")
            tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            if number not in known or known[number] not in (None, wire):
                raise _Damage(f"{what} with a field {number} of wire type {wire}, which no file of ours has")
            if wire == _VARINT:
                value, at = self._varint(at, end)
                yield number, (value, value)
                continue
            if wire == _BYTES:
                size, at = self._varint(at, end)
            elif wire in (_FOUR, _EIGHT):
                size = 4 if wire == _FOUR else 8
            else:
                raise _Damage(f"{what} with a field of wire type {wire}")
            if size > end - at:
                raise _Damage(f"{what} goes on beyond its end")
            yield number, (at, at + size)
            at += size

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while at < end and shift < 64:
            byte = self._data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
            shift += 7
        raise _Damage("a number without an end")
