"""Reader of the graphs that an ExecuTorch program hands to XNNPACK. Reads no weights.

ExecuTorch compiles such a graph without a look at its bounds: a number that is not there ends the process, and weights
shorter than their shape are read beyond their end. Numbers of fields and types are those of the schema.fbs of its
XNNPACK backend, file identifiers XN00 and XN01.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.formats.flatbuffers import Bytes, Damage, Numbers, Tables, number

BACKEND = "XnnpackBackend"
FLOAT = 1  # of XNNDatatype
_MAGIC, _IDENTIFIERS = b"XH00", (b"XN00", b"XN01")
_HEADER_BYTES = 30
_NOTHING = (1 << 32) - 1  # an id of none: a value that is no external one, a product without a bias
_BITS = {1: 32, 2: 16, 3: 8, 6: 8, 8: 4, 9: 8, 10: 4}  # XNNDatatype -> bits of a number
_RANKS = 6
_CHANNELS, _GROUPS, _TENSOR, _TOKENS = 1, 4, 2, 3  # of XNNQuantParams


class Node(NamedTuple):
    """Which fields of a node's table are ids of what it reads and of what it makes, and which are lists of sizes."""

    reads: tuple[int, ...]
    makes: int
    lists: tuple[int, ...] = ()
    rank: int | None = None  # the field that says how long they are
    optional: int | None = None  # an id that may be none


_ONE, _TWO = Node((0,), 1), Node((0, 1), 2)
_CONVOLUTION, _POOL, _ONE_AFTER = Node((15, 16, 17), 18, optional=17), Node((10,), 11), Node((1,), 2)
_SHAPED = Node((2,), 3, lists=(1,), rank=0)
# XNodeUnion -> its table
_NODES = {
    **dict.fromkeys((3, 4, 6, 17, 18, 19, 22, 23, 24, 27, 28, 30, 40, 41, 42, 43, 44, 45, 46, 47), _ONE),
    **dict.fromkeys((1, 8, 12, 15, 16, 26, 31, 37), _TWO),
    **dict.fromkeys((5, 20), _SHAPED),
    **dict.fromkeys((7, 13, 39), _CONVOLUTION),
    **dict.fromkeys((11, 14), _POOL),
    **dict.fromkeys((25, 29), _ONE_AFTER),
    2: Node((0, 1, 2), 3, optional=2),
    10: Node((3,), 4, lists=(0, 1)),
    32: Node((1, 2), 5),
    33: Node((1, 2, 3), 5),
    34: Node((1, 2, 3, 4), 5),
    35: Node((3,), 4, lists=(1, 2), rank=0),
    38: Node((1, 2, 3, 4, 7), 5),
}
_PACKING = (2, 7, 13, 31, 37, 39)  # the second that it reads is packed, and with it the third


class Port(NamedTuple):
    """An argument of the graph."""

    shape: tuple[int, ...]
    kind: int
    made: bool  # the graph writes it


def ports(blob: Bytes, named: Mapping[str, int]) -> tuple[Port, ...]:
    """The arguments in their order; `named`: the bytes of each piece of data that the program keeps by name.

    Raises Damage on a graph that is cut, refers to what is not there, or has less data than its shapes say.
    """
    return _Reader(blob, named).ports()


class Packed(NamedTuple):
    """A weight that XNNPACK packs. What is kept of it is known by `name` alone."""

    name: str  # of the weight, and of its bias
    node: int  # XNodeUnion
    shape: tuple[int, ...]
    kind: int


def packed(blob: Bytes, named: Mapping[str, int]) -> list[Packed]:
    """The weights that have names, of a graph that is sound."""
    return _Reader(blob, named).packed()


class _Reader:
    def __init__(self, blob: Bytes, named: Mapping[str, int]) -> None:
        if len(blob) < _HEADER_BYTES or blob[4:8].tobytes() != _MAGIC:
            raise Damage("what it hands to XNNPACK is no graph")
        head, size, data = (int(number(blob, np.array([at]), "<u4")[0]) for at in (10, 14, 18))
        data_bytes = int(number(blob, np.array([22]), "<i8")[0])
        if head + size > len(blob) or data_bytes < 0 or data + data_bytes > len(blob):
            raise Damage("a graph ends beyond the end")
        graph = blob[head : head + size]
        if graph[4:8].tobytes() not in _IDENTIFIERS:
            raise Damage(f"a graph begins with {graph[:8].tobytes()!r}")
        self._data = graph
        self._graph = Tables.root(graph, "a graph")
        self._sizes = self._constants(data_bytes, named)
        values, _ = self._graph.tables(2, "a graph's value")
        self._quantized = values.scalar(0, "<u1") == 2
        if np.any(~np.isin(values.scalar(0, "<u1"), (1, 2))) or not np.all(values.there(1)):
            raise Damage("a graph's value that is no tensor")
        inner, _ = values.table(1, "a graph's value")
        self._scaled = Tables(graph, inner.at[self._quantized], "a graph's quantised value")
        at = inner.at.copy()
        if not np.all(self._scaled.there(0)):
            raise Damage("a graph's quantised value without its tensor")
        at[self._quantized] = self._scaled.table(0, "a graph's value")[0].at
        self._values = Tables(graph, at, "a graph's value")

    def ports(self) -> tuple[Port, ...]:
        values = self._values
        shapes, kinds = self._shapes(), values.scalar(0, "<i2")
        constant = self._stored(shapes, kinds)
        ids, external = values.scalar(6, "<u4"), values.scalar(4, "<u4")
        if len(np.unique(ids)) != len(ids):
            raise Damage("two of a graph's values have one number")
        place = {int(one): index for index, one in enumerate(ids.tolist())}
        given, made = (self._ends(entry, place) for entry in (4, 5))
        outside = np.flatnonzero(external != _NOTHING)
        order = external[outside]
        if self._graph.scalar(3, "<u4")[0] != len(order) or sorted(order.tolist()) != list(range(len(order))):
            raise Damage("a graph's arguments are not numbered as they should be")
        if sorted(outside.tolist()) != sorted(given + made):
            raise Damage("a graph's arguments are not its inputs and outputs")
        if np.any(constant[outside]):
            raise Damage("a graph's argument is a constant")
        written = self._nodes(place, shapes, constant, given)
        if not written.issuperset(made):
            raise Damage("a graph's result that nothing wrote")
        return tuple(
            Port(shapes[index], int(kinds[index]), index in made) for index in outside[np.argsort(order)].tolist()
        )

    def packed(self) -> list[Packed]:
        shapes, kinds, buffers = self._shapes(), self._values.scalar(0, "<i2").tolist(), self._values.scalar(3, "<u4")
        place = {number: index for index, number in enumerate(self._values.scalar(6, "<u4").tolist())}
        names = [self._keys[buffer] if buffer else "" for buffer in buffers.tolist()]
        nodes, _ = self._graph.tables(1, "a graph's node")
        tables, _ = nodes.table(1, "a graph's node")
        found = []
        for node in _PACKING:
            table = Tables(self._data, tables.at[nodes.scalar(0, "<u1") == node], "a graph's node")
            weights, *biases = (table.scalar(field, "<u4").tolist() for field in _NODES[node].reads[1:])
            for at, weight in enumerate(map(place.__getitem__, weights)):
                if names[weight]:
                    bias = "".join(names[place[one[at]]] for one in biases if one[at] != _NOTHING)
                    found.append(Packed(names[weight] + bias, node, shapes[weight], kinds[weight]))
        return found

    def _constants(self, size: int, named: Mapping[str, int]) -> list[int]:
        """The bytes of each; the first stands for none."""
        stored, _ = self._graph.tables(8, "a graph's data")
        self._keys = keys = stored.texts(2)
        offsets, sizes = stored.scalar(0, "<i8").tolist(), stored.scalar(1, "<i8").tolist()
        found = []
        for key, offset, count in zip(keys, offsets, sizes, strict=True):
            room = named.get(key, -1) if key else size - offset if offset >= 0 else -1
            if not 0 <= count <= room:
                raise Damage("a graph's data that is not there")
            found.append(count)
        return found

    def _ends(self, entry: int, place: Mapping[int, int]) -> list[int]:
        numbers, _ = self._graph.numbers(entry, "<u4")
        return [self._known(one, place) for one in numbers.tolist()]

    @staticmethod
    def _known(one: int, place: Mapping[int, int]) -> int:
        if one not in place:
            raise Damage(f"a graph refers to value {one}, which is not there")
        return place[one]

    def _shapes(self) -> list[tuple[int, ...]]:
        dims, whose = self._values.numbers(2, "<u4")
        begin = np.searchsorted(whose, np.arange(len(self._values) + 1))
        if np.any(np.diff(begin) != self._values.scalar(1, "<u4")) or np.any(np.diff(begin) > _RANKS):
            raise Damage("a graph's value with more or fewer sizes than axes")
        numbers = dims.tolist()
        return [tuple(numbers[a:b]) for a, b in zip(begin[:-1].tolist(), begin[1:].tolist(), strict=True)]

    def _stored(self, shapes: list[tuple[int, ...]], kinds: Numbers) -> NDArray[np.bool_]:
        """Which values are constants. Each has as many bytes as its shape says, and as many scales."""
        buffers, known = self._values.scalar(3, "<u4"), np.isin(kinds, list(_BITS))
        if not np.all(known) or np.any(buffers >= max(1, len(self._sizes))):
            raise Damage("a graph's value of a kind, or with data, that is not there")
        for index in np.flatnonzero(buffers).tolist():
            # Two axes of 4 bits: each row begins with a byte of its own.
            *rows, last = shapes[index] or (1,)
            wanted = prod(rows) * -(-last * _BITS[int(kinds[index])] // 8)
            if self._sizes[int(buffers[index])] < wanted:
                raise Damage(f"a graph's value of {wanted} bytes, whose data has fewer")
        params, types = self._scaled, self._scaled.scalar(1, "<u1")
        if np.any(~np.isin(types, (_CHANNELS, _GROUPS, _TENSOR, _TOKENS))) or not np.all(params.there(2)):
            raise Damage("a graph's value with scales of a kind that no file of ours has")
        tables, _ = params.table(2, "scales")
        indices = np.flatnonzero(self._quantized)
        for kind in (_CHANNELS, _GROUPS, _TOKENS):
            chosen = types == kind
            some = [shapes[index] for index in indices[chosen].tolist()]
            self._check_scales(kind, some, Tables(self._data, tables.at[chosen], "scales"))
        return buffers > 0

    def _check_scales(self, kind: int, shapes: list[tuple[int, ...]], params: Tables) -> None:
        if kind == _TOKENS:
            axes = params.scalar(0, "<i4").tolist()
            if any(not 0 < count <= len(shape) for count, shape in zip(axes, shapes, strict=True)):
                raise Damage("scales of more axes than there are")
            return
        first = 2 if kind == _CHANNELS else 4
        axes, groups = params.scalar(1, "<i4").tolist(), params.scalar(2, "<i4").tolist()
        buffers, counts = (params.scalar(entry, "<u4").tolist() for entry in (first, first + 1))
        for shape, axis, group, buffer, count in zip(shapes, axes, groups, buffers, counts, strict=True):
            if not 0 <= axis < len(shape):
                raise Damage("scales of an axis that is not there")
            wanted, size = shape[axis], 4
            if kind == _GROUPS:
                if len(shape) != 2 or group < 1 or shape[1] % group:
                    raise Damage("scales of groups that do not divide a row")
                wanted, size = shape[0] * (shape[1] // group), 2
            if count != wanted or not 0 < buffer < len(self._sizes) or self._sizes[buffer] < count * size:
                raise Damage("a graph's value with more or fewer scales than it needs")

    def _nodes(
        self, place: Mapping[int, int], shapes: list[tuple[int, ...]], constant: NDArray[np.bool_], given: list[int]
    ) -> set[int]:
        """What the nodes write, each once, and only what is no constant and no input."""
        ready, written = {*np.flatnonzero(constant).tolist(), *given}, set[int]()
        for reads, makes, lists in self._links(place):
            if not ready.issuperset(reads):
                raise Damage("a graph's node reads what nothing wrote before it")
            if makes in ready:
                raise Damage("a graph's node writes what is there already")
            ready.add(makes)
            written.add(makes)
            if lists is not None and lists != len(shapes[reads[0]]):
                raise Damage("a graph's node with more or fewer sizes than axes")
        return written

    def _links(self, place: Mapping[int, int]) -> list[tuple[list[int], int, int | None]]:
        """Of each node, what it reads, what it makes, and how long its lists are where they follow what it reads."""
        nodes, _ = self._graph.tables(1, "a graph's node")
        kinds = nodes.scalar(0, "<u1")
        if not np.all(nodes.there(1)) or not set(kinds.tolist()) <= _NODES.keys():
            raise Damage("a graph's node of a kind that no file of ours has")
        tables, _ = nodes.table(1, "a graph's node")
        found: dict[int, tuple[list[int], int, int | None]] = {}
        for kind in np.unique(kinds).tolist():
            node, chosen = _NODES[kind], np.flatnonzero(kinds == kind)
            table = Tables(self._data, tables.at[chosen], "a graph's node")
            lengths = [table.vectors(entry, 4).count for entry in node.lists]
            if node.rank is not None:
                rank = table.scalar(node.rank, "<u4")
                if any(np.any(length != rank) for length in lengths) or np.any(rank > _RANKS):
                    raise Damage("a graph's node with more or fewer sizes than axes")
            reads = [table.scalar(field, "<u4").tolist() for field in node.reads]
            makes = table.scalar(node.makes, "<u4").tolist()
            for at, index in enumerate(chosen.tolist()):
                ids = [(field, ids[at]) for field, ids in zip(node.reads, reads, strict=True)]
                known = [self._known(i, place) for field, i in ids if i != _NOTHING or field != node.optional]
                follows = None if node.rank is not None or not lengths else int(lengths[0][at])
                if follows is not None and any(int(length[at]) != follows for length in lengths):
                    raise Damage("a graph's node with more or fewer sizes than axes")
                found[index] = known, self._known(makes[at], place), follows
        return [found[index] for index in range(len(found))]
