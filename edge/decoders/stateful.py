"""Decoder for Core ML models that keep the KV cache in states shared by `prefill` and `decode`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.decoders.embedding_table import EmbeddingTable
from edge.decoders.kv_graph import position_after, require_held
from edge.types import Array, Segment

MASKED = -10000.0  # in a causal mask: half precision holds it, and no attention is left of it
PREFILL, DECODE = "prefill", "decode"


class StatefulModel(Protocol):
    """Its functions take `inputs_embeds` f32 [1, S, hidden] and `causal_mask` f32 [1, 1, S, T], where T counts all
    positions and the S new ones are the last of them; they give `logits` f32 [1, 1, vocab] of the last position.
    `prefill` takes any S, `decode` one. What lies behind T is written over."""

    def run(self, function: str, feeds: Mapping[str, Array]) -> Array:
        """The logits. Raises EngineError."""
        ...


class StatefulDecoder:
    def __init__(self, model: StatefulModel, table: EmbeddingTable, context: int) -> None:
        self._model = model
        self._table = table
        self._context = context
        self._position = 0

    @property
    def position(self) -> int:
        return self._position

    def extend(self, segments: Sequence[Segment]) -> NDArray[np.float32]:
        total = position_after(segments, self._position, self._context)
        count = total - self._position
        rows = np.empty((1, count, self._table.hidden), np.float32)
        self._table.embed(segments, rows[0])
        mask = np.triu(np.full((count, total), MASKED, np.float32), k=1 + self._position)
        logits = self._model.run(
            DECODE if count == 1 else PREFILL, {"inputs_embeds": rows, "causal_mask": mask[None, None]}
        )
        self._position = total
        return np.asarray(logits[0, -1], np.float32)

    def rewind(self, position: int) -> None:
        require_held(position, self._position)
        self._position = position
