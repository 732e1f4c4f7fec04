"""KV cache for ONNX graphs: arrays `[1, kv_heads, positions, head_dim]` that the graph reads and writes in place."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

from edge.types import Array, DeviceArray, DeviceGraph

STEP = 256  # the first allocation of a growing cache; it doubles as the cache fills


@dataclass(frozen=True)
class CacheSlot:
    """One key or value tensor: what the graph reads it as, and what it writes it as."""

    past: str
    present: str
    dtype: str
    heads: int
    head_dim: int

    def zeros(self, length: int) -> Array:
        # What is not yet written is masked, and must not be NaN. Anonymous pages are zeros that come when they are
        # touched: memory follows use. NumPy's own would come in huge pages, whole.
        shape = (1, self.heads, length, self.head_dim)
        if length == 0:
            return np.zeros(shape, self.dtype)
        try:
            pages = mmap.mmap(-1, prod(shape) * np.dtype(self.dtype).itemsize)
        except OSError as error:
            raise MemoryError(str(error)) from error
        return np.frombuffer(pages, self.dtype).reshape(shape)


Arrays = Mapping[str, Array]
Bound = Mapping[str, Any]  # what a graph is given: arrays, or a card's own


class Cache(Protocol):
    def prepare(self, used: int, total: int) -> tuple[Bound, Bound]:
        """What to feed, and what to have written, to go from `used` positions to `total`. Raises MemoryError, and is
        then as it was."""
        ...

    def commit(self) -> None:
        """The graph has run."""
        ...

    def rewind(self, position: int) -> None: ...

    def save(self, position: int) -> dict[str, Array]:
        """Copies of the first `position` positions, by what the graph reads them as."""
        ...

    def load(self, arrays: Arrays, position: int) -> None:
        """Hold what `save` gave. Raises MemoryError."""
        ...


class FixedCache:
    """The graph writes new positions into the array that it reads, which never moves: an engine binds it once."""

    def __init__(self, slots: tuple[CacheSlot, ...], length: int) -> None:
        self._slots = slots
        self._length = length
        self._past: dict[str, Array] = {}
        self._present: dict[str, Array] = {}

    def prepare(self, used: int, total: int) -> tuple[Arrays, Arrays]:
        if not self._past:
            arrays = [slot.zeros(self._length) for slot in self._slots]
            self._past = {slot.past: array for slot, array in zip(self._slots, arrays, strict=True)}
            self._present = {slot.present: array for slot, array in zip(self._slots, arrays, strict=True)}
        return self._past, self._present

    def save(self, position: int) -> dict[str, Array]:
        return {name: array[:, :, :position].copy() for name, array in self._past.items()}

    def load(self, arrays: Arrays, position: int) -> None:
        past, _ = self.prepare(0, position)
        for name, array in arrays.items():
            past[name][:, :, :position] = array

    def commit(self) -> None:
        return

    def rewind(self, position: int) -> None:
        return  # what lies behind the position is masked, and written over


class CardCache:
    """As a FixedCache, in memory of the card that computes the graph: what it holds goes to and from the processor in
    snapshots only."""

    def __init__(self, slots: tuple[CacheSlot, ...], length: int, card: DeviceGraph) -> None:
        self._slots = slots
        self._length = length
        self._card = card
        self._held: dict[str, DeviceArray] = {}

    def prepare(self, used: int, total: int) -> tuple[Bound, Bound]:
        if not self._held:
            shapes = {slot.past: ((1, slot.heads, self._length, slot.head_dim), slot.dtype) for slot in self._slots}
            self._held = {name: self._card.zeros(*shape) for name, shape in shapes.items()}
        return self._held, {slot.present: self._held[slot.past] for slot in self._slots}

    def save(self, position: int) -> dict[str, Array]:
        return {name: held.read()[:, :, :position].copy() for name, held in self._held.items()}

    def load(self, arrays: Arrays, position: int) -> None:
        self.prepare(0, position)
        for slot in self._slots:
            whole = slot.zeros(self._length)
            whole[:, :, :position] = arrays[slot.past]
            self._held[slot.past].write(whole)

    def commit(self) -> None:
        return

    def rewind(self, position: int) -> None:
        return  # as of a FixedCache


class GrowingCache:
    """The graph gives a longer copy of what it reads. Two sets of buffers take turns: a step allocates nothing."""

    def __init__(self, slots: tuple[CacheSlot, ...], limit: int) -> None:
        self._slots = slots
        self._limit = limit
        self._buffers: tuple[dict[str, Array], dict[str, Array]] = ({}, {})  # flat: read from, written to
        self._past: dict[str, Array] = {slot.past: slot.zeros(0) for slot in slots}
        self._present: dict[str, Array] = {}

    def prepare(self, used: int, total: int) -> tuple[Arrays, Arrays]:
        self._present = {slot.present: self._target(slot, total) for slot in self._slots}
        return self._past, self._present

    def commit(self) -> None:
        self._past = {slot.past: self._present[slot.present] for slot in self._slots}
        self._buffers = self._buffers[::-1]

    def rewind(self, position: int) -> None:
        self._present = {slot.present: self._target(slot, position) for slot in self._slots}
        for slot in self._slots:
            self._present[slot.present][:] = self._past[slot.past][:, :, :position]
        self.commit()

    def save(self, position: int) -> dict[str, Array]:
        return {name: array[:, :, :position].copy() for name, array in self._past.items()}

    def load(self, arrays: Arrays, position: int) -> None:
        _, present = self.prepare(0, position)
        for slot in self._slots:
            present[slot.present][:] = arrays[slot.past]
        self.commit()

    def _target(self, slot: CacheSlot, length: int) -> Array:
        shape = (1, slot.heads, length, slot.head_dim)
        buffer = self._buffers[1].get(slot.past)
        if buffer is None or buffer.size < prod(shape):
            buffer = self._buffers[1][slot.past] = slot.zeros(_capacity(length, self._limit)).reshape(-1)
        return buffer[: prod(shape)].reshape(shape)


def _capacity(total: int, limit: int) -> int:
    length = STEP
    while length < total:
        length *= 2
    return min(length, limit)
