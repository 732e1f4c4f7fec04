"""Base of every decoder: its position, the bounds of its context, rewinding, snapshots, and a prompt's embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.decoders.function_graph import require_arrays
from edge.errors import ContextError, EngineError
from edge.types import Array, Segment, Snapshot, TensorSpec, Tokens


class Lookup(Protocol):
    """Where token ids become embeddings."""

    vocab: int
    hidden: int

    def gather(self, ids: Sequence[int], out: NDArray[np.float32]) -> None:
        """Write the embeddings of `ids`, each of them inside the vocabulary, into `out`, f32 [len(ids), hidden]."""
        ...


class BaseDecoder(ABC):
    """A Decoder (`edge.types`) that leaves its engine one step: `_run`. One with a `layout` also has `_save`, `_kept`
    and `_load`, of its KV cache."""

    layout: str | None = None

    def __init__(self, lookup: Lookup, context: int) -> None:
        """`context`: how many positions it may hold, as the plan settled it."""
        self._lookup = lookup
        self._context = context
        self._position = 0
        # One token at a time is the common case: its embedding always lies in the same array, which engines keep bound.
        self._row = np.empty((1, 1, lookup.hidden), np.float32)

    @property
    def position(self) -> int:
        return self._position

    def extend(self, segments: Sequence[Segment]) -> NDArray[np.float32]:
        """See `edge.types.Decoder`. Raises EngineError on an empty prompt, a token id outside the vocabulary or
        embeddings of another width; after any error the decoder holds what it held before."""
        count = sum(map(len, segments))
        total = self._position + count
        if not count:
            raise EngineError("a decoder was extended by nothing")
        if total > self._context:
            raise too_long(total, self._context)
        logits = self._run(self._embed(segments, count), self._position)
        self._position = total
        return logits

    def rewind(self, position: int) -> None:
        require_held(position, self._position)
        if position < self._position:
            self._forget(position)
            self._position = position

    def snapshot(self) -> Snapshot:
        """See `edge.types.Decoder`."""
        if self.layout is None:
            raise EngineError(f"a {type(self).__name__} keeps its KV cache out of reach")
        return Snapshot(self.layout, self._position, self._save() if self._position else {})

    def restore(self, snapshot: Snapshot) -> None:
        """See `edge.types.Decoder`."""
        self.rewind(0)
        if self.layout is None or snapshot.layout != self.layout:
            raise EngineError(f"a KV cache of the layout {snapshot.layout!r}, for a decoder of {self.layout!r}")
        if not 0 <= snapshot.position <= self._context:
            raise EngineError(f"a KV cache of {snapshot.position} positions, for a context of {self._context}")
        require_arrays(self._kept(snapshot.position) if snapshot.position else (), (), snapshot.arrays, {})
        if snapshot.position:
            self._load(snapshot.arrays, snapshot.position)
            self._position = snapshot.position

    @abstractmethod
    def _run(self, embeddings: Array, position: int) -> NDArray[np.float32]:
        """Compute the positions from `position` on, of embeddings f32 [1, S, hidden] as `_embed` made them; logits
        f32 [vocab] of the last one, in memory of their own. What stands before `position` must survive an error."""

    def _forget(self, position: int) -> None:
        """Drop what stands from `position` on. A cache that is masked, and written over, has nothing to do."""
        return

    def _save(self) -> dict[str, Array]:
        """Copies of the KV cache's filled part."""
        raise NotImplementedError

    def _kept(self, position: int) -> Sequence[TensorSpec]:
        """What `_save` gives after so many positions; a named axis has any length."""
        raise NotImplementedError

    def _load(self, arrays: Mapping[str, Array], position: int) -> None:
        """Put what `_save` gave into the KV cache, of which nothing is in use. `arrays` are as `_kept` says, and their
        numbers may be anything: they come from a file. Raises EngineError."""
        raise NotImplementedError

    def _embed(self, segments: Sequence[Segment], count: int) -> Array:
        rows = self._row if count == 1 else np.empty((1, count, self._lookup.hidden), np.float32)
        embed(segments, self._lookup, rows[0])
        return rows


def embed(segments: Sequence[Segment], lookup: Lookup, out: NDArray[np.float32]) -> None:
    """Write a prompt's embeddings into `out`, f32 [positions, hidden]: tokens looked up, embeddings as they are.

    Raises EngineError on a token id outside the vocabulary, and on embeddings of another width.
    """
    start = 0
    for segment in segments:
        end = start + len(segment)
        if not isinstance(segment, Tokens):
            if segment.rows.ndim != 2 or segment.rows.shape[1] != lookup.hidden:
                raise EngineError(f"embeddings of {segment.rows.shape}, for a decoder of width {lookup.hidden}")
            out[start:end] = segment.rows
        elif segment.ids:
            require_ids(segment.ids, lookup.vocab)
            lookup.gather(segment.ids, out[start:end])
        start = end


def require_ids(ids: Sequence[int], vocab: int) -> None:
    """Raises EngineError on a token id outside the vocabulary: native code would read beyond its table."""
    low, high = min(ids), max(ids)
    if low < 0 or high >= vocab:
        raise EngineError(f"a token id is outside the vocabulary of {vocab}: {low} to {high} were given")


def require_held(position: int, held: int) -> None:
    """Raises EngineError when a decoder that holds so many positions is rewound to another."""
    if not 0 <= position <= held:
        raise EngineError(f"cannot rewind to {position} from {held}")


def too_long(needed: int, context: int, tiles: int = 0) -> ContextError:
    """`tiles`: how many of the positions are those of images that could be divided into fewer."""
    rest = needed - tiles
    return ContextError(
        f"the prompt needs {needed} positions, {f'{tiles} of them for tiles, ' * bool(tiles)}and the context holds "
        f"{context}",
        hint=f"--image-tokens {context - rest} or less, of all images together"
        if tiles and context > rest
        else "ask something shorter, or export again with a larger --context",
    )


def no_memory(positions: int) -> EngineError:
    return EngineError(f"no memory for a KV cache of {positions} positions", hint="load with a smaller context")
