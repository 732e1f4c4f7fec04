"""Decoder for Core ML models that keep the KV cache in states shared by `prefill` and `decode`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.decoders.base import BaseDecoder
from edge.decoders.embedding_table import EmbeddingTable
from edge.types import Array

MASKED = -10000.0  # in a causal mask: half precision holds it, and no attention is left of it
PREFILL, DECODE = "prefill", "decode"


class StatefulModel(Protocol):
    """Its functions take `inputs_embeds` f32 [1, S, hidden] and `causal_mask` f32 [1, 1, S, T], where T counts all
    positions and the S new ones are the last of them; they give `logits` f32 [1, 1, vocab] of the last position.
    `prefill` takes any S, `decode` one. What lies behind T is written over."""

    def run(self, function: str, feeds: Mapping[str, Array]) -> Array:
        """The logits. Raises EngineError."""
        ...


class StatefulDecoder(BaseDecoder):
    def __init__(self, model: StatefulModel, table: EmbeddingTable, context: int) -> None:
        super().__init__(table, context)
        self._model = model

    def _run(self, embeddings: Array, position: int) -> NDArray[np.float32]:
        count = embeddings.shape[1]
        mask = np.triu(np.full((count, position + count), MASKED, np.float32), k=1 + position)
        feeds = {"inputs_embeds": embeddings, "causal_mask": mask[None, None]}
        logits = self._model.run(DECODE if count == 1 else PREFILL, feeds)
        return np.asarray(logits[0, -1], np.float32)
