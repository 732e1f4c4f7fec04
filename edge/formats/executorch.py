"""Reader of ExecuTorch programs (`.pte`): methods, and what they need of a runtime. Reads no weights.

Native code trusts such a file, and ends the process on some that it does not like: so its head is read and bounded here
first. Numbers of fields and types are those of ExecuTorch's program.fbs, version 0, and of its extended header.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.devices import file_facts
from edge.errors import BundleError
from edge.formats import executorch_caches, executorch_delegates
from edge.formats.executorch_caches import Cache
from edge.formats.executorch_delegates import Segments
from edge.formats.flatbuffers import Damage, Numbers, Tables, number
from edge.types import TensorSpec

IDENTIFIER, VERSION = b"ET12", 0
_HEADER, _HEADER_AT, _HEADER_BYTES = b"eh00", 8, 24
# ScalarType -> name
KINDS = {0: "uint8", 1: "int8", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64", 11: "bool"}
_INT, _BOOL, _TENSOR = 2, 3, 5  # of KernelTypes
_CALL, _DELEGATE, _MOVE, _JUMP, _FREE = 1, 2, 3, 4, 5  # of InstructionArguments
_MOST_METHODS, _MOST_PORTS = 256, 1 << 12  # ports: of all methods, inputs or outputs
_DELEGATES = "delegates 2"  # the fact that they are sound, and the version of what is looked at
_SOUND, _APART = "sound", "sound, each weight by a name of its own"
_CACHES = ("update_cache.out", "update_quantized_cache.out")  # they write into their second argument


@dataclass(frozen=True)
class Method:
    """One way to call the file. Axes of a shape are the most that they can be."""

    name: str
    inputs: tuple[TensorSpec, ...]  # without names: a program has none
    outputs: tuple[TensorSpec | int, ...]  # a number that a method is there to tell
    operators: tuple[str, ...]  # as a runtime registers them
    delegates: tuple[str, ...]  # backends that compute parts of it
    caches: tuple[Cache, ...]  # what it writes new positions into, in its order


@dataclass(frozen=True)
class Program:
    path: Path
    methods: Mapping[str, Method]
    apart: bool  # whether XNNPACK's packed weights can be kept by their names

    def constant(self, name: str) -> int | None:
        """What a method tells that gives one number; None where there is no such method."""
        method = self.methods.get(name)
        values = [value for value in method.outputs if isinstance(value, int)] if method else []
        return values[0] if values else None


def read(path: Path) -> Program:
    """Raises BundleError on a file that is no ExecuTorch program, is cut, or refers to what is not there."""
    try:
        reader = _Reader(np.asarray(np.memmap(path, np.uint8, "r")))
        methods = reader.methods()
        return Program(path, methods, file_facts.fact(path, _DELEGATES, lambda _: reader.delegates()) == _APART)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise BundleError(f"cannot read {path.name}: {error}", hint="copy or export it again") from error
    except Damage as damage:
        raise BundleError(
            f"{path.name} is no sound ExecuTorch program: {damage}", hint="copy or export it again"
        ) from None


class _Reader:
    def __init__(self, data: NDArray[np.uint8]) -> None:
        if data[4:8].tobytes() != IDENTIFIER:
            raise Damage(f"it begins with {data[:8].tobytes()!r}, expected {IDENTIFIER!r} after the first four bytes")
        head, base, size = self._header(data)
        self._program = Tables.root(data[:head], "the program")
        if (version := int(self._program.scalar(0, "<u4")[0])) != VERSION:
            raise Damage(f"version {version}, expected {VERSION}")
        self._segments(data, base, size)

    @staticmethod
    def _header(data: NDArray[np.uint8]) -> tuple[int, int, int]:
        """Bytes of the flatbuffer, where the segments begin, and their bytes."""
        if data[_HEADER_AT : _HEADER_AT + 4].tobytes() != _HEADER:
            return len(data), 0, 0
        length = int(number(data, np.array([_HEADER_AT + 4]), "<u4")[0])
        head, base = (int(number(data, np.array([_HEADER_AT + at]), "<i8")[0]) for at in (8, 16))
        size = len(data) - base
        if length > _HEADER_BYTES:
            size = int(number(data, np.array([_HEADER_AT + 24]), "<i8")[0])
        if not 0 < head <= len(data) or base < 0 or (base and not (head <= base and 0 <= size <= len(data) - base)):
            raise Damage("its segments end beyond the end: the file is cut")
        return head, base, size

    def _segments(self, data: NDArray[np.uint8], base: int, size: int) -> None:
        segments, _ = self._program.tables(4, "a segment")
        offset, bytes_ = segments.scalar(0, "<i8"), segments.scalar(1, "<i8")
        if not base:
            size = 0  # a file without weights has an empty segment all the same
        if np.any(offset < 0) or np.any(bytes_ < 0) or np.any(offset > size - bytes_):
            raise Damage("a segment ends beyond the end: the file is cut")
        named, _ = self._program.tables(7, "named data")
        keys, index = named.texts(0), named.scalar(1, "<u4")
        _inside(index, np.full(len(named), len(segments)), "named data's segment")
        sizes, alone = dict(zip(keys, bytes_[index].tolist(), strict=True)), len(np.unique(index)) == len(index)
        self._placed = Segments(data, base + offset, bytes_, sizes, alone)

    def delegates(self) -> str:
        """Raises Damage where one is not sound; `methods` comes before."""
        return _APART if executorch_delegates.check(self._program, self._placed) else _SOUND

    def methods(self) -> dict[str, Method]:
        plans, _ = self._program.tables(1, "a method")
        if not 0 < len(plans) <= _MOST_METHODS:
            raise Damage(f"{len(plans)} methods")
        names = plans.texts(0)
        if len(set(names)) != len(names):
            raise Damage("two methods have one name")
        values, owner = plans.tables(2, "a value")
        first = np.searchsorted(owner, np.arange(len(plans) + 1))
        inputs, outputs = (self._ports(plans, values, first, entry) for entry in (3, 4))
        written = _memories(plans, values, first)
        operators, whose = plans.tables(6, "an operator")
        called = [f"{a}.{b}" if b else a for a, b in zip(operators.texts(0), operators.texts(1), strict=True)]
        delegates, whom = plans.tables(7, "a delegate")
        backends = delegates.texts(0)
        counts = [np.bincount(one, minlength=len(plans)) for one in (owner, whose, whom)]
        _instructions(plans, *counts)
        caches = _results(plans, called, np.searchsorted(whose, np.arange(len(plans))), first, written)
        kept = executorch_caches.caches(values, *caches, len(plans))
        called_by, handed_by = (np.searchsorted(one, np.arange(len(plans) + 1)) for one in (whose, whom))
        return {
            name: Method(
                name,
                tuple(port for port in inputs[index] if isinstance(port, TensorSpec)),
                tuple(outputs[index]),
                tuple(dict.fromkeys(called[called_by[index] : called_by[index + 1]])),
                tuple(backends[handed_by[index] : handed_by[index + 1]]),
                kept[index],
            )
            for index, name in enumerate(names)
        }

    @staticmethod
    def _ports(plans: Tables, values: Tables, first: Numbers, entry: int) -> list[list[TensorSpec | int]]:
        """Of each method, what its inputs or outputs are."""
        numbers, owner = plans.numbers(entry, "<i4")
        _inside(numbers, np.diff(first)[owner], "an input or output")
        if len(numbers) > _MOST_PORTS:
            raise Damage(f"{len(numbers)} inputs or outputs")
        chosen = Tables(values.data, values.at[first[owner] + numbers], "a value")
        kinds = chosen.scalar(0, "<u1")
        if np.any((kinds != 0) & ~chosen.there(1)):
            raise Damage("a value without what it is")
        inner, known = chosen.table(1, "a value")
        found: list[list[TensorSpec | int]] = [[] for _ in range(len(plans))]
        place = {int(whom): at for whom, at in zip(known.tolist(), inner.at.tolist(), strict=True)}
        for index, (kind, plan) in enumerate(zip(kinds.tolist(), owner.tolist(), strict=True)):
            if kind not in (_INT, _BOOL, _TENSOR):
                continue
            one = Tables(values.data, np.array([place[index]]), "a value")
            found[plan].append(
                _tensor(one) if kind == _TENSOR else int(one.scalar(0, "<i8" if kind == _INT else "<u1")[0])
            )
        return found


def _memories(plans: Tables, values: Tables, first: Numbers) -> Numbers:
    """Each tensor that is not given is somewhere: in the file, in a file beside it, or in planned memory. Whether each
    value can be written: it is no tensor, or lies in planned memory."""
    kinds, (inner, known) = values.scalar(0, "<u1"), values.table(1, "a value")
    chosen = kinds[known] == _TENSOR
    tensors = Tables(values.data, inner.at[chosen], "a tensor")
    nowhere = (tensors.scalar(5, "<u4") == 0) & ~tensors.there(6) & ~tensors.there(9)
    given, owner = plans.numbers(3, "<i4")
    if np.any(~np.isin(known[chosen][nowhere], first[owner] + given)):
        raise Damage("a tensor that is nowhere")
    writable = np.ones(len(values), bool)
    writable[known[chosen]] = tensors.there(6)
    return writable


def _results(
    plans: Tables, called: list[str], operators: Numbers, first: Numbers, writable: Numbers
) -> tuple[Numbers, Numbers]:
    """An operator's last argument is its result, which one that is called `….out` has twice; that of a cache is its
    second argument, too. None is a constant, which is mapped for reading, or what the caller gives. The caches, as
    numbers of values, and the method of each."""
    chains, plan = plans.tables(5, "a chain")
    steps, chain = chains.tables(2, "an instruction")
    inner, _ = steps.table(1, "an instruction")
    chosen = np.flatnonzero(steps.scalar(0, "<u1") == _CALL)
    calls = Tables(plans.data, inner.at[chosen], "an instruction")
    whose = plan[chain][chosen]
    numbers, caller = calls.numbers(1, "<i4")
    begin = np.searchsorted(caller, np.arange(len(calls) + 1))
    counts, end = np.diff(begin), begin[1:]
    names = [called[at].partition("::")[2] for at in (operators[whose] + calls.scalar(0, "<i4")).tolist()]
    outs = np.array([name.endswith("out") for name in names], bool) & (counts > 1)
    caches = np.array([name in _CACHES for name in names], bool) & (counts > 1)
    results = np.concatenate([end[counts > 0] - 1, end[outs] - 2, begin[:-1][caches] + 1])
    if not np.all(writable[first[whose[caller[results]]] + numbers[results]]):
        raise Damage("an operator whose result has no memory of its own")
    held = begin[:-1][caches] + 1
    return first[whose[caller[held]]] + numbers[held], whose[caller[held]]


def _instructions(plans: Tables, values: Numbers, operators: Numbers, delegates: Numbers) -> None:
    """What each method does refers to what it has; the runtime takes an operator's number as it is."""
    chains, plan = plans.tables(5, "a chain")
    steps, chain = chains.tables(2, "an instruction")
    kinds, (inner, known) = steps.scalar(0, "<u1"), steps.table(1, "an instruction")
    if len(known) != len(steps) or np.any((kinds < _CALL) | (kinds > _FREE)):
        raise Damage("an instruction that says nothing")
    whose, longest = plan[chain], np.bincount(chain, minlength=len(chains))[chain]
    first = {_CALL: operators[whose], _DELEGATE: delegates[whose]}
    second = {_MOVE: values[whose], _JUMP: longest + 1}
    for kind in range(_CALL, _FREE + 1):
        chosen = np.flatnonzero(kinds == kind)
        one = Tables(plans.data, inner.at[chosen], "an instruction")
        _inside(one.scalar(0, "<i4"), first.get(kind, values[whose])[chosen], "what an instruction refers to")
        if kind in second:
            _inside(one.scalar(1, "<i4"), second[kind][chosen], "what an instruction refers to")
        if kind in first:
            numbers, caller = one.numbers(1, "<i4")
            _inside(numbers, values[whose][chosen][caller], "what an instruction refers to")


def _tensor(one: Tables) -> TensorSpec:
    kind = int(one.scalar(0, "<i1")[0])
    if kind not in KINDS:
        raise Damage(f"numbers of the type {kind}")
    sizes, _ = one.numbers(2, "<i4")
    if len(sizes) > 16 or np.any(sizes < 0):
        raise Damage(f"a tensor of {sizes[:17].tolist()}")
    return TensorSpec("", KINDS[kind], tuple(sizes.tolist()))


def _inside(numbers: Numbers, counts: Numbers, what: str) -> None:
    if np.any(numbers < 0) or np.any(numbers >= counts):
        raise Damage(f"{what} that is not there")
