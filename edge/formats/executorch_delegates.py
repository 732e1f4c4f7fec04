"""Check what an ExecuTorch program hands to XNNPACK: each graph, and each call of one.

A call gives its arguments as a bare list, which XNNPACK's delegate reads by the graph's own numbers: fewer, others or
smaller ones than the graph has are read, and written, where they are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from edge.formats import xnnpack_graph
from edge.formats.flatbuffers import Bytes, Damage, Numbers, Tables
from edge.formats.xnnpack_graph import Packed, Port

_DELEGATE, _TENSOR = 2, 5  # of InstructionArguments, of KernelTypes
_SEGMENT = 1  # of DataLocation
_FLOAT = 6  # of ScalarType


@dataclass(frozen=True)
class Segments:
    """Where a program keeps what is too large for its head."""

    data: Bytes
    begin: Numbers
    size: Numbers
    named: Mapping[str, int]  # the bytes of what is kept by name
    alone: bool  # each name has a segment of its own

    @property
    def apart(self) -> bool:
        """Whether no byte has two names."""
        order = np.argsort(self.begin[filled := np.flatnonzero(self.size)])
        begin, end = self.begin[filled][order], (self.begin + self.size)[filled][order]
        return self.alone and not np.any(begin[1:] < end[:-1])

    def blob(self, index: int) -> Bytes:
        begin = int(self.begin[index])
        return self.data[begin : begin + int(self.size[index])]


def check(program: Tables, segments: Segments) -> bool:
    """Whether XNNPACK's packed weights can be kept by the names that the program gives them: the library asks nothing
    else of what it finds, neither its shape nor its scales. Numbers of values and delegates in instructions are known
    to be there. Raises Damage."""
    plans, _ = program.tables(1, "a method")
    delegates, whose = plans.tables(7, "a delegate")
    blobs = _blobs(delegates, segments)
    graphs = [blob and xnnpack_graph.ports(blob[0], segments.named) for blob in blobs]
    first = np.searchsorted(whose, np.arange(len(plans)))
    values = _Values(plans)
    chains, plan = plans.tables(5, "a chain")
    steps, chain = chains.tables(2, "an instruction")
    chosen = np.flatnonzero(steps.scalar(0, "<u1") == _DELEGATE)
    inner, known = steps.table(1, "an instruction")
    calls = Tables(plans.data, inner.at[np.searchsorted(known, chosen)], "a delegate's call")
    owner, called = plan[chain[chosen]], calls.scalar(0, "<i4")
    arguments, of = calls.numbers(1, "<i4")
    begin = np.searchsorted(of, np.arange(len(calls) + 1))
    for call in range(len(calls)):
        graph = graphs[int(first[owner[call]] + called[call])]
        if graph is not None:
            values.fit(int(owner[call]), arguments[begin[call] : begin[call + 1]].tolist(), graph)
    return segments.apart and _told_apart(
        one for blob in blobs if blob for one in xnnpack_graph.packed(blob[0], segments.named)
    )


def _told_apart(weights: Iterable[Packed]) -> bool:
    """Whether what has one name is packed alike. Of integers the scales are packed, too: those have one use each."""
    known: dict[str, Packed] = {}
    for one in weights:
        if one.name in known and (one != known[one.name] or one.kind != xnnpack_graph.FLOAT):
            return False
        known[one.name] = one
    return True


def _blobs(delegates: Tables, segments: Segments) -> list[tuple[Bytes] | None]:
    """None: for another backend, which no engine here is given."""
    places, known = delegates.table(1, "where a delegate lies")
    location, index = places.scalar(0, "<i1"), places.scalar(1, "<u4")
    if len(known) != len(delegates) or np.any(location != _SEGMENT) or np.any(index >= len(segments.begin)):
        raise Damage("a delegate that is nowhere")
    ours = (name == xnnpack_graph.BACKEND for name in delegates.texts(0))
    return [(segments.blob(number),) if own else None for own, number in zip(ours, index.tolist(), strict=True)]


class _Values:
    """The tensors of all methods."""

    def __init__(self, plans: Tables) -> None:
        values, owner = plans.tables(2, "a value")
        self._first = np.searchsorted(owner, np.arange(len(plans) + 1))
        inner, known = values.table(1, "a value")
        tensor = values.scalar(0, "<u1")[known] == _TENSOR
        self._known = known[tensor]
        self._tensors = Tables(plans.data, inner.at[tensor], "a tensor")
        self._kinds, self._planned = self._tensors.scalar(0, "<i1"), self._tensors.there(6)
        self._sizes, self._order = (self._lists(entry, dtype) for entry, dtype in ((2, "<i4"), (3, "<u1")))

    def _lists(self, entry: int, dtype: str) -> list[tuple[int, ...]]:
        numbers, whose = self._tensors.numbers(entry, dtype)
        begin = np.searchsorted(whose, np.arange(len(self._tensors) + 1)).tolist()
        listed = numbers.tolist()
        return [tuple(listed[a:b]) for a, b in pairwise(begin)]

    def fit(self, plan: int, given: list[int], ports: tuple[Port, ...]) -> None:
        """Raises Damage where what is given is not what a graph takes."""
        if len(given) != len(ports):
            raise Damage(f"a delegate is called with {len(given)} arguments, and takes {len(ports)}")
        for number, port in zip(given, ports, strict=True):
            value = int(self._first[plan]) + number
            at = int(np.searchsorted(self._known, value))
            if at == len(self._known) or self._known[at] != value:
                raise Damage("a delegate is given what is no tensor")
            if port.kind != xnnpack_graph.FLOAT or self._kinds[at] != _FLOAT:
                raise Damage("a delegate is given numbers that are not float32")
            sizes, order = self._sizes[at], self._order[at]
            if len(order) != len(sizes) or any(axis >= len(sizes) for axis in order):
                raise Damage("a tensor whose axes have no order")
            if port.shape not in (sizes or (1,), tuple(sizes[axis] for axis in order)):
                raise Damage(f"a delegate is given a tensor of {list(sizes)}, and takes {list(port.shape)}")
            if port.made and not self._planned[at]:
                raise Damage("a delegate whose result has no memory of its own")
