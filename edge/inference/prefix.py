"""Prefix: what a decoder's KV cache holds, position by position, with a snapshot of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

from edge.types import Segment, Snapshot, Tokens

Held = int | tuple[str, int]  # a token id, or a row of the embeddings of that key


@dataclass(frozen=True, eq=False)
class Prefix:
    held: tuple[Held, ...]
    snapshot: Snapshot  # of so many positions

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.snapshot.nbytes

    def common(self, segments: Sequence[Segment]) -> int:
        """How many positions of a prompt it holds."""
        return common(self.held, [held for segment in segments for held in positions(segment)])


def common(held: Sequence[Held], wanted: Sequence[Held]) -> int:
    """The length of the longest common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(held, wanted, strict=False)))


def positions(segment: Segment) -> Iterator[Held]:
    if isinstance(segment, Tokens):
        yield from segment.ids
    else:
        yield from ((segment.key, segment.first + row) for row in range(len(segment)))
