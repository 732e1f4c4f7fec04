"""Small files whose tables are one table, many times: their readers take no more memory than a file of ours costs."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from edge.errors import BundleError
from edge.formats import executorch, tflite

MANY, MOST = 120_000, 300 << 20


class Flatbuffer:
    """Tables of offsets and numbers of four bytes, in the order in which they are added; offsets lead ahead."""

    def __init__(self, identifier: bytes) -> None:
        self.data = bytearray(b"\0" * 4 + identifier)

    def table(self, fields: Mapping[int, int]) -> tuple[int, dict[int, int]]:
        """Where it is, and where each of its fields is."""
        most = max(fields) + 1
        order = sorted(fields)
        places = [4 + 4 * order.index(entry) if entry in fields else 0 for entry in range(most)]
        vtable = self._put(struct.pack(f"<HH{most}H", 4 + 2 * most, 4 + 4 * len(fields), *places))
        at = self._put(b"\0" * 4)
        struct.pack_into("<i", self.data, at, at - vtable)
        self.data += b"".join(struct.pack("<I", fields[entry]) for entry in order)
        return at, {entry: at + places[entry] for entry in order}

    def same(self, place: int, count: int) -> list[int]:
        """A vector of `count` offsets, which a field refers to; where they are."""
        at = self.bytes(place, count, 4 * count)
        return [at + 4 + 4 * index for index in range(count)]

    def bytes(self, place: int, count: int, size: int) -> int:
        at = self._put(struct.pack("<I", count) + b"a" * size)
        self.refer(place, at)
        return at

    def refer(self, place: int, target: int) -> None:
        struct.pack_into("<I", self.data, place, target - place)

    def _put(self, content: bytes) -> int:
        self.data += b"\0" * (-len(self.data) % 4)
        self.data += content
        return len(self.data) - len(content)


def names(identifier: bytes, root: Mapping[int, int], entry: int, name: int) -> bytes:
    """`MANY` tables in field `entry` of the root that are one, with a name of half a million letters."""
    made = Flatbuffer(identifier)
    at, fields = made.table({**root, entry: 0})
    struct.pack_into("<I", made.data, 0, at)
    offsets = made.same(fields[entry], MANY)
    one, own = made.table({name: 0})
    for place in offsets:
        made.refer(place, one)
    made.bytes(own[name], 500_000, 500_000)
    return bytes(made.data)


def values(identifier: bytes, root: Mapping[int, int], entry: int, inner: int) -> bytes:
    """256 tables that are one, each with the same list of tables that are one."""
    made = Flatbuffer(identifier)
    at, fields = made.table({**root, entry: 0})
    struct.pack_into("<I", made.data, 0, at)
    offsets = made.same(fields[entry], 256)
    one, own = made.table({inner: 0})
    for place in offsets:
        made.refer(place, one)
    offsets = made.same(own[inner], MANY)
    other, _ = made.table({0: 0})
    for place in offsets:
        made.refer(place, other)
    return bytes(made.data)


def fields(identifier: bytes, root: Mapping[int, int], entry: int, inner: int) -> bytes:
    """One list of numbers that many tables share."""
    made = Flatbuffer(identifier)
    at, places = made.table({**root, entry: 0})
    struct.pack_into("<I", made.data, 0, at)
    (offset,) = made.same(places[entry], 1)
    one, own = made.table({inner: 0})
    made.refer(offset, one)
    offsets = made.same(own[inner], MANY)
    other, theirs = made.table({0: 0})
    for place in offsets:
        made.refer(place, other)
    made.bytes(theirs[0], 100_000, 400_000)
    return bytes(made.data)


TFLITE, PROGRAM = (b"TFL3", {0: 3}), (b"ET12", {0: 0})
CASES: Mapping[str, tuple[Callable[[Path], object], bytes]] = {
    "names of subgraphs": (tflite.read, names(*TFLITE, 2, 4)),
    "tensors of subgraphs": (tflite.read, values(*TFLITE, 2, 0)),
    "shapes of tensors": (tflite.read, fields(*TFLITE, 2, 0)),
    "names of operators": (tflite.read, names(*TFLITE, 1, 1)),
    "names of methods": (executorch.read, names(*PROGRAM, 1, 0)),
    "values of methods": (executorch.read, values(*PROGRAM, 1, 2)),
    "names of data": (executorch.read, names(*PROGRAM, 7, 0)),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_shared_is_counted_before_it_is_listed(tmp_path: Path, case: str) -> None:
    read, content = CASES[case]
    (tmp_path / "shared").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match="shared"):
            read(tmp_path / "shared")
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()
