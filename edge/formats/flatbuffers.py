"""Reader of flatbuffers, many tables at a time, with every bound checked before native code sees the file.

The layout is that of flatbuffers.dev/internals: a table begins with the way back to its vtable, which says where each
field lies in it; strings, vectors and tables are found by unsigned 32-bit offsets ahead of where they stand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]

MOST = 1 << 20  # entries of all vectors of one kind: tables, or numbers of a shape or a list
_MOST_FIELDS = 64  # of a table
_MOST_TEXT = 1 << 24  # bytes of all texts of one kind


class Damage(Exception):
    """What is out of bounds."""


@dataclass(frozen=True)
class Vectors:
    """One vector for each of several tables; an absent one is empty. Tables may share one, and be shared themselves: a
    small file then says more than memory holds, so the entries are counted before they are listed."""

    start: Numbers  # of the first element, in the file
    count: Numbers
    what: str

    def bounded(self, most: int = MOST) -> None:
        """Raises Damage where all vectors together have more entries than any file of ours."""
        if (total := int(self.count.sum())) > most:
            raise Damage(f"{self.what}: lists of {total:,} entries, at most {most:,}")

    @property
    def owners(self) -> Numbers:
        """For each element of all of them, whose it is."""
        self.bounded()
        return np.repeat(np.arange(len(self.count)), self.count)

    def places(self, size: int) -> Numbers:
        """Where each element of all of them lies; they are `size` bytes wide."""
        self.bounded()
        before = np.cumsum(self.count) - self.count
        within = np.arange(self.count.sum()) - np.repeat(before, self.count)
        return np.asarray(np.repeat(self.start, self.count) + within * size, np.int64)


class Tables:
    """Several tables of one kind."""

    def __init__(self, data: Bytes, at: Numbers, what: str) -> None:
        self.data = data
        self.at = at
        self.what = what
        self._within(at, 4)
        self._vtable = at - number(data, at, "<i4")
        self._within(self._vtable, 4)
        self._vtable_bytes = number(data, self._vtable, "<u2")
        self._bytes = number(data, at * 0 + self._vtable + 2, "<u2")
        self._within(self._vtable, self._vtable_bytes)
        self._within(at, self._bytes)
        if np.any(self._vtable_bytes < 4) or np.any(self._bytes < 4):
            raise Damage(f"{what}: a table without its beginning")

    @classmethod
    def root(cls, data: Bytes, what: str) -> Tables:
        if len(data) < 8:
            raise Damage(f"{len(data)} bytes")
        return cls(data, number(data, np.zeros(1, np.int64), "<u4"), what)

    def __len__(self) -> int:
        return len(self.at)

    def scalar(self, entry: int, dtype: str, default: int = 0) -> Numbers:
        """A field of each table, or the default where it is absent."""
        place = self._field(entry, np.dtype(dtype).itemsize)
        found = np.full(len(self), default, np.int64)
        found[place > 0] = number(self.data, place[place > 0], dtype)
        return found

    def tables(self, entry: int, what: str) -> tuple[Tables, Numbers]:
        """The tables in a vector of each, and whose they are."""
        vectors = self.vectors(entry, 4)
        places = vectors.places(4)
        return Tables(self.data, places + number(self.data, places, "<u4"), what), vectors.owners

    def table(self, entry: int, what: str) -> tuple[Tables, Numbers]:
        """The table that a field of each refers to, and whose it is, where there is one."""
        target = self._target(entry)
        owners = np.flatnonzero(target)
        return Tables(self.data, target[owners], what), owners

    def vectors(self, entry: int, size: int) -> Vectors:
        """A vector of each table, of elements of `size` bytes."""
        target = self._target(entry)
        count = np.zeros(len(self), np.int64)
        there = target > 0
        count[there] = number(self.data, target[there], "<u4")
        self._within(target + 4, count * size)
        return Vectors(target + 4, count, self.what)

    def numbers(self, entry: int, dtype: str) -> tuple[Numbers, Numbers]:
        """All numbers of a vector of each table, and whose they are."""
        vectors = self.vectors(entry, np.dtype(dtype).itemsize)
        return number(self.data, vectors.places(np.dtype(dtype).itemsize), dtype), vectors.owners

    def texts(self, entry: int) -> list[str]:
        """A string of each table."""
        vectors = self.vectors(entry, 1)
        vectors.bounded(_MOST_TEXT)
        try:
            return [
                self.data[start : start + count].tobytes().decode()
                for start, count in zip(vectors.start.tolist(), vectors.count.tolist(), strict=True)
            ]
        except UnicodeDecodeError:
            raise Damage(f"{self.what}: what should be text is not") from None

    def there(self, entry: int) -> NDArray[np.bool_]:
        """Whether each table has that field."""
        return np.asarray(self._field(entry, 1) > 0)

    def bounded(self) -> None:
        """Check where every field begins; for tables of numbers only."""
        if (fields := int(self._vtable_bytes.max(initial=4)) // 2 - 2) > _MOST_FIELDS:
            raise Damage(f"{self.what}: a table of {fields} fields")
        for entry in range(fields):
            self._field(entry, 1)

    def _field(self, entry: int, size: int) -> Numbers:
        """Where a field of each table lies; 0 where it is absent."""
        slot = 4 + 2 * entry
        found = np.zeros(len(self), np.int64)
        known = self._vtable_bytes >= slot + 2
        found[known] = number(self.data, self._vtable[known] + slot, "<u2")
        there = found > 0
        if np.any(found[there] < 4) or np.any(found[there] + size > self._bytes[there]):
            raise Damage(f"{self.what}: a field outside its table")
        found[there] += self.at[there]
        return found

    def _target(self, entry: int) -> Numbers:
        place = self._field(entry, 4)
        target = np.zeros(len(self), np.int64)
        there = place > 0
        target[there] = place[there] + number(self.data, place[there], "<u4")
        self._within(target[there], 4)
        return target

    def _within(self, at: Numbers, size: Numbers | int) -> None:
        if np.any(at < 0) or np.any(at + size > len(self.data)):
            raise Damage(f"{self.what}: it goes on beyond the end")


def number(data: Bytes, at: Numbers, dtype: str) -> Numbers:
    """The little-endian number at each place."""
    size = np.dtype(dtype).itemsize
    if np.any(at < 0) or np.any(at + size > len(data)):
        raise Damage("a number beyond the end")
    parts = data[at[:, None] + np.arange(size)]
    return np.ascontiguousarray(parts).view(dtype)[:, 0].astype(np.int64)
