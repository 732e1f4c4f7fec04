"""Reader of TFLite files: signatures, and whether the file is sound. Reads no weights.

Such a file is handed to native code, which trusts much of it. So its structure is walked here first, and what is out of
bounds, refers to what is not there, or is nothing that this project writes, is refused. Numbers of fields and types are
those of TensorFlow Lite's schema.fbs, version 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.errors import BundleError
from edge.formats.flatbuffers import Damage, Numbers, Tables
from edge.formats.tflite_operators import FULLY_CONNECTED, OPERATORS, RESHAPE, Facts, Operands, check
from edge.types import TensorSpec

IDENTIFIER, VERSION = b"TFL3", 3
# TensorType -> (name, bits)
KINDS = {0: ("float32", 32), 1: ("float16", 16), 2: ("int32", 32), 9: ("int8", 8), 17: ("int4", 4)}
_BLOCKWISE = 2  # QuantizationDetails
_MOST_GRAPHS = 256
_MOST_PORTS = 1 << 16  # inputs of all signatures, or outputs
_LARGEST = 1 << 40


@dataclass(frozen=True)
class Signature:
    """One way to call the file. The tensors stand in the order of the subgraph."""

    name: str
    subgraph: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_tensors: tuple[int, ...]  # their numbers in the subgraph
    output_tensors: tuple[int, ...]
    varying: Mapping[str, tuple[int, ...]]  # the axes of each tensor that may be given another size; without the others


@dataclass(frozen=True)
class TFLite:
    path: Path
    signatures: Mapping[str, Signature]
    shared_scale: bool  # no product has weights of more than one scale


def read(path: Path) -> TFLite:
    """Raises BundleError on a file that is no TFLite model, is cut, or refers to what is not there."""
    try:
        return _Reader(np.asarray(np.memmap(path, np.uint8, "r"))).file(path)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise BundleError(f"cannot read {path.name}: {error}", hint="copy or export it again") from error
    except Damage as damage:
        raise BundleError(f"{path.name} is no sound TFLite file: {damage}", hint="copy or export it again") from None


class _Reader:
    def __init__(self, data: NDArray[np.uint8]) -> None:
        if data[4:8].tobytes() != IDENTIFIER:
            raise Damage(f"it begins with {data[:8].tobytes()!r}, expected {IDENTIFIER!r} after the first four bytes")
        self._data = data
        self._model = Tables.root(data, "the model")
        if (version := int(self._model.scalar(0, "<u4")[0])) != VERSION:
            raise Damage(f"version {version}, expected {VERSION}")

    def file(self, path: Path) -> TFLite:
        self._model.texts(3)  # its description
        for entry in (5, 6, 8, 9):  # metadata, and numbers in other files
            if np.any(self._model.there(entry)):
                raise Damage("it holds what no file of ours does")
        codes = self._codes()
        sizes = self._buffers()
        graphs, _ = self._model.tables(2, "a subgraph")
        if not 0 < len(graphs) <= _MOST_GRAPHS:
            raise Damage(f"{len(graphs)} subgraphs")
        graphs.texts(4)  # their names
        tensors, owner = graphs.tables(0, "a tensor")
        first = np.searchsorted(owner, np.arange(len(graphs) + 1))  # where each subgraph's tensors begin
        described = _Tensors(tensors, owner, first, sizes)
        several = described.check()
        given, outputs = (self._ends(graphs, entry, first) for entry in (1, 2))
        facts = described.facts(given)
        operands = self._operators(graphs, first, codes, several)
        check(operands, facts)
        if not np.all(np.isin(outputs, operands.output)) or np.any(facts.constant & facts.given):
            raise Damage("an output that no operator makes, or an input that is a constant")
        return TFLite(path, self._signatures(graphs, first, described), self._shared)

    def _codes(self) -> Numbers:
        codes, _ = self._model.tables(1, "an operator code")
        numbers = np.maximum(codes.scalar(0, "<i1"), codes.scalar(3, "<i4"))
        for number in numbers.tolist():
            if number not in OPERATORS:
                raise Damage(f"it computes with operator {number}, which no file of ours does")
        codes.texts(1)
        return numbers

    def _buffers(self) -> Numbers:
        """The bytes of each."""
        buffers, _ = self._model.tables(4, "a buffer")
        inside = buffers.vectors(0, 1).count
        offset, size = buffers.scalar(1, "<i8"), buffers.scalar(2, "<i8")
        if np.any(offset < 0) or np.any(size < 0) or np.any(size > _LARGEST):
            raise Damage("a buffer of impossible size")
        if np.any((offset > 1) & (offset + size > len(self._data))):
            raise Damage("a buffer ends beyond the end")
        return np.where(offset > 1, size, inside)

    @staticmethod
    def _ends(graphs: Tables, entry: int, first: Numbers) -> Numbers:
        """The inputs or outputs of all subgraphs."""
        numbers, owners = graphs.numbers(entry, "<i4")
        _inside(numbers, np.diff(first)[owners], "an input or output")
        return np.asarray(first[:-1][owners] + numbers, np.int64)

    def _operators(self, graphs: Tables, first: Numbers, codes: Numbers, several: NDArray[np.bool_]) -> Operands:
        operators, owner = graphs.tables(3, "an operator")
        index = operators.scalar(0, "<u4")
        _inside(index, np.full(len(index), len(codes)), "an operator code")
        code = codes[index]
        counts = np.diff(first)[owner]
        inputs, whose = operators.numbers(1, "<i4")
        _inside(inputs + 1, counts[whose] + 1, "an operator's input")  # -1: an input that is left out
        outputs, made = operators.numbers(2, "<i4")
        _inside(outputs, counts[made], "an operator's output")
        if np.any(operators.vectors(2, 4).count != 1):
            raise Damage("an operator with more or fewer results than one")
        self._options(operators, code)
        for entry in (5, 7, 8):  # custom options, mutating inputs, intermediates
            if np.any(operators.there(entry)):
                raise Damage("an operator of a kind that no file of ours has")
        begin = first[:-1][owner]
        places = np.where(inputs < 0, -1, begin[whose] + inputs)
        operands = Operands(code, operators.vectors(1, 4).count, places, begin + outputs)
        products = np.flatnonzero((code == FULLY_CONNECTED) & (operands.counts >= 2))
        weights = operands.at(products, 1)
        self._shared = not np.any(several[weights[weights >= 0]])
        return operands

    def _options(self, operators: Tables, code: Numbers) -> None:
        kinds, wanted = operators.scalar(3, "<u1"), np.array([OPERATORS[c].options for c in code.tolist()], np.int64)
        options, whom = operators.table(4, "an operator's options")
        if np.any(kinds != wanted) or not np.array_equal(whom, np.flatnonzero(wanted)):
            raise Damage("an operator without its options, or with another one's")
        options.bounded()
        reshapes = code[whom] == RESHAPE
        Tables(self._data, options.at[reshapes], "a reshape").vectors(0, 4)

    def _signatures(self, graphs: Tables, first: Numbers, tensors: _Tensors) -> dict[str, Signature]:
        defined, _ = self._model.tables(7, "a signature")
        if len(defined) > _MOST_GRAPHS:
            raise Damage(f"{len(defined)} signatures")
        names, index = defined.texts(2), defined.scalar(4, "<u4")
        _inside(index, np.full(len(index), len(graphs)), "a signature's subgraph")
        ports = [self._ports(defined, graphs, entry, index, first) for entry in (0, 1)]
        found: dict[str, Signature] = {}
        for number, (name, subgraph) in enumerate(zip(names, index.tolist(), strict=True)):
            if name in found:
                raise Damage(f"two signatures are named {name!r}")
            (inputs, sources), (outputs, targets) = (port[number] for port in ports)
            specs = [
                tuple(tensors.spec(n, int(first[subgraph]) + at) for n, at in zip(named, places, strict=True))
                for named, places in ((inputs, sources), (outputs, targets))
            ]
            places = zip((*inputs, *outputs), (*sources, *targets), strict=True)
            free = {n: axes for n, at in places if (axes := tensors.varying(int(first[subgraph]) + at))}
            found[name] = Signature(name, subgraph, specs[0], specs[1], sources, targets, free)
        if not found:
            raise Damage("it has no signature")
        return found

    def _ports(
        self, defined: Tables, graphs: Tables, entry: int, index: Numbers, first: Numbers
    ) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
        """Of each signature: the names and the tensors, as the subgraph orders them."""
        maps, owner = defined.tables(entry, "a signature's tensor")
        if len(maps) > _MOST_PORTS:
            raise Damage(f"{len(maps)} inputs or outputs")
        names, places = maps.texts(0), maps.scalar(1, "<u4")
        _inside(places, np.diff(first)[index][owner], "a signature's tensor")
        ordered, of = graphs.numbers(entry + 1, "<i4")
        found = []
        for number, subgraph in enumerate(index.tolist()):
            mine = np.flatnonzero(owner == number)
            named = dict(zip(places[mine].tolist(), (names[at] for at in mine.tolist()), strict=True))
            order = ordered[of == subgraph].tolist()
            if sorted(named) != sorted(order) or len(set(named.values())) != len(mine):
                raise Damage("a signature that does not name its subgraph's inputs and outputs")
            found.append((tuple(named[at] for at in order), tuple(order)))
        return found


class _Tensors:
    def __init__(self, tables: Tables, owner: Numbers, first: Numbers, sizes: Numbers) -> None:
        self._tables = tables
        self._owner, self._first, self._sizes = owner, first, sizes
        self._kinds = tables.scalar(1, "<i1")
        self._dims, self._whose = tables.numbers(0, "<i4")
        self._begin = np.searchsorted(self._whose, np.arange(len(tables) + 1))
        self._free, self._freely = tables.numbers(7, "<i4")

    def check(self) -> NDArray[np.bool_]:
        """Whether each tensor has several scales."""
        tables = self._tables
        if np.any(self._dims < 0) or np.any(self._dims > 1 << 30):
            raise Damage("a tensor of impossible shape")
        elements = np.ones(len(tables), np.float64)
        np.multiply.at(elements, self._whose, self._dims)
        kinds = set(self._kinds.tolist())
        if not kinds <= KINDS.keys() or np.any(elements > _LARGEST):
            raise Damage("a tensor of a kind or size that no file of ours has")
        bits = np.zeros(max(KINDS) + 1)
        for kind, (_, width) in KINDS.items():
            bits[kind] = width
        buffer = tables.scalar(2, "<u4")
        _inside(buffer, np.full(len(buffer), len(self._sizes)), "a tensor's buffer")
        stored = self._sizes[buffer]
        if np.any((stored > 0) & (stored * 8 != elements * bits[self._kinds])):
            raise Damage("a tensor whose numbers are more or fewer than its shape says")
        tables.texts(3)  # their names
        self._elements, self._stored = elements, stored
        for entry in (5, 6, 9):  # variables, sparsity, variants
            if np.any(tables.there(entry)):
                raise Damage("a tensor of a kind that no file of ours has")
        self._signature(stored)
        return self._quantization(elements)

    def facts(self, given: Numbers) -> Facts:
        """What operators need of the tensors; `given`: the inputs of subgraphs."""
        ranks = np.diff(self._begin)
        first, last = np.ones(len(ranks), np.int64), np.ones(len(ranks), np.int64)
        some = ranks > 0
        first[some], last[some] = self._dims[self._begin[:-1][some]], self._dims[self._begin[1:][some] - 1]
        inputs = np.zeros(len(ranks), bool)
        inputs[given] = True
        return Facts(self._kinds, self._stored > 0, inputs, self._scaled, ranks, self._elements, first, last)

    def _quantization(self, elements: NDArray[np.float64]) -> NDArray[np.bool_]:
        quantized, whose = self._tables.table(4, "a tensor's scales")
        for entry in (0, 1):  # least and largest
            quantized.vectors(entry, 4)
        scales, zeros = quantized.vectors(2, 4).count, quantized.vectors(3, 8).count
        if np.any(scales != zeros):
            raise Damage("scales without their zero points")
        rows = np.ones(len(self._tables), np.int64)
        rows[self._whose[self._begin[:-1][np.diff(self._begin) > 0]]] = self._dims[
            self._begin[:-1][np.diff(self._begin) > 0]
        ]
        if np.any((scales > 1) & (scales != rows[whose])):
            raise Damage("a tensor with more or fewer scales than rows")
        details = quantized.scalar(4, "<u1")
        if set(details.tolist()) - {0, _BLOCKWISE} or np.any(quantized.scalar(6, "<i4") != 0):
            raise Damage("scales of a kind that no file of ours has")
        blocks, of = quantized.table(5, "a tensor's blocks")
        if np.any(details[of] != _BLOCKWISE) or len(of) != np.count_nonzero(details):
            raise Damage("scales of a kind that no file of ours has")
        self._blocks(blocks, whose[of], elements)
        several, self._scaled = np.zeros(len(self._tables), bool), np.zeros(len(self._tables), bool)
        self._scaled[whose[scales > 0]] = self._scaled[whose[of]] = True
        several[whose] = scales > 1
        several[whose[of]] = True
        return several

    def _blocks(self, blocks: Tables, whose: Numbers, elements: NDArray[np.float64]) -> None:
        scale, size = blocks.scalar(0, "<i4"), blocks.scalar(2, "<i4")
        _inside(scale, np.diff(self._first)[self._owner[whose]], "a tensor's scales")
        if np.any(blocks.scalar(1, "<i4") != -1):
            raise Damage("blocks with zero points")
        if np.any(size < 1) or np.any(elements[self._first[:-1][self._owner[whose]] + scale] * size != elements[whose]):
            raise Damage("a tensor with more or fewer scales than blocks")

    def _signature(self, stored: Numbers) -> None:
        """Shapes that may change: each as its tensor's, with -1 for some sizes."""
        told = np.unique(self._freely)
        mine = np.isin(self._whose, told)
        same = np.array_equal(self._whose[mine], self._freely)
        if not same or np.any((self._free != -1) & (self._free != self._dims[mine])) or np.any(stored[told]):
            raise Damage("a tensor whose shape may change to what it is not")

    def varying(self, index: int) -> tuple[int, ...]:
        """The axes of a tensor whose sizes may change."""
        begin, end = np.searchsorted(self._freely, (index, index + 1))
        return tuple(np.flatnonzero(self._free[begin:end] == -1).tolist())

    def spec(self, name: str, index: int) -> TensorSpec:
        shape = tuple(self._dims[self._begin[index] : self._begin[index + 1]].tolist())
        return TensorSpec(name, KINDS[int(self._kinds[index])][0], shape)


def _inside(numbers: Numbers, count: Numbers, what: str) -> None:
    if np.any(numbers < 0) or np.any(numbers >= count):
        raise Damage(f"{what} refers to what is not there")
