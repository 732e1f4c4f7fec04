"""Kept prefixes: KV caches of conversations that were left for others, the latest ones, within so many bytes."""

from __future__ import annotations

from collections.abc import Sequence

from edge.inference.prefix import Held, Prefix, common

WORTH = 16  # positions: to compute fewer is cheaper than to copy the others


class Kept:
    def __init__(self, limit: int) -> None:
        """`limit`: of the bytes of all snapshots together."""
        self.limit = limit
        self._prefixes: list[Prefix] = []  # the one used last comes last

    @property
    def nbytes(self) -> int:
        return sum(prefix.nbytes for prefix in self._prefixes)

    def __len__(self) -> int:
        return len(self._prefixes)

    def holds(self, held: Sequence[Held]) -> bool:
        """Whether one begins with all of this."""
        return any(common(prefix.held, held) == len(held) for prefix in self._prefixes)

    def add(self, prefix: Prefix) -> None:
        """In place of those that it goes on from; the ones used least lately make room."""
        self._prefixes = [p for p in self._prefixes if common(p.held, prefix.held) < len(p.held)]
        self._prefixes.append(prefix)
        while self._prefixes and self.nbytes > self.limit:
            self._prefixes.pop(0)

    def best(self, wanted: Sequence[Held], more_than: int) -> Prefix | None:
        """The one with the longest beginning in common, if that is longer than `more_than` positions."""
        lengths = [common(prefix.held, wanted) for prefix in self._prefixes]
        if max(lengths, default=0) <= more_than:
            return None
        found = self._prefixes.pop(lengths.index(max(lengths)))
        self._prefixes.append(found)
        return found

    def clear(self) -> None:
        self._prefixes = []
