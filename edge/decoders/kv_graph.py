"""Decoder for ONNX graphs with `past_key_values` inputs. See `kv_decoder` for the names they use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edge.decoders.base import BaseDecoder, no_memory
from edge.decoders.embedding_table import EmbeddingTable
from edge.decoders.kv_cache import Cache, CacheSlot, CardCache, FixedCache, GrowingCache
from edge.errors import EngineError
from edge.spec import DecoderSpec
from edge.types import Array, Decoder, DeviceGraph, Graph, PartFiles, TensorSpec

_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")


def kv_decoder(graph: Graph, part: PartFiles, spec: DecoderSpec, context: int) -> Decoder:
    """A decoder that remembers, from a graph that does not.

    The graph takes `inputs_embeds` f32 [1, S, hidden], `attention_mask` i64 [1, past + S], if it wants them
    `position_ids` i64 [1, S], and `past_key_values.N.key|value` [1, kv_heads, L, head_dim]; it gives `logits`
    f32 [1, 1 or S, vocab] and `present.N.key|value`. Where past and present name the same length, the graph updates a
    cache in place; otherwise it gives a longer one. Raises EngineError when the graph is none of this, and BundleError
    when the embedding table beside it is missing or damaged.
    """
    inputs = {t.name: t for t in graph.inputs}
    outputs = {t.name: t for t in graph.outputs}
    slots = tuple(_slot(t, spec) for name, t in inputs.items() if _PAST.fullmatch(name))
    expected = {f"past_key_values.{n}.{kind}" for n in range(spec.layers) for kind in ("key", "value")}
    expected |= {"inputs_embeds", "attention_mask"} | ({"position_ids"} & inputs.keys())
    given = {"logits"} | {slot.present for slot in slots}
    if not slots or inputs.keys() != expected or outputs.keys() != given:
        odd = sorted((inputs.keys() ^ expected) | (outputs.keys() ^ given))
        raise EngineError(f"not a decoder of {spec.layers} layers: {', '.join(odd[:6])}", hint=_verify(part))
    lengths = {(inputs[s.past].shape[2], outputs[s.present].shape[2]) for s in slots}
    past, present = lengths.pop()
    if lengths:
        raise EngineError("the decoder's caches differ in length from layer to layer", hint=_verify(part))
    cache: Cache
    if past != present:
        cache = GrowingCache(slots, context)
    else:
        length = past if isinstance(past, int) else context
        context = min(context, length)
        cache = CardCache(slots, length, graph) if isinstance(graph, DeviceGraph) else FixedCache(slots, length)
    table = EmbeddingTable.open(part.files, spec.vocab, spec.hidden)
    return KVGraphDecoder(graph, table, slots, cache, context)


class KVGraphDecoder(BaseDecoder):
    layout = "past_key_values"

    def __init__(
        self, graph: Graph, table: EmbeddingTable, slots: tuple[CacheSlot, ...], cache: Cache, context: int
    ) -> None:
        super().__init__(table, context)
        self._graph = graph
        self._slots = slots
        self._cache = cache
        self._wants_positions = any(t.name == "position_ids" for t in graph.inputs)
        self._here = np.zeros((1, 1), np.int64)  # one position at a time is the common case: always the same array
        self._ones = np.ones((1, context), np.int64)
        logits = next(t for t in graph.outputs if t.name == "logits")
        fixed = tuple(d for d in logits.shape if isinstance(d, int))
        self._logits_shape = fixed if len(fixed) == len(logits.shape) else None  # None: the engine allocates
        self._logits_dtype = logits.dtype

    def _run(self, embeddings: Array, position: int) -> NDArray[np.float32]:
        count = embeddings.shape[1]
        total = position + count
        feeds: dict[str, Array] = {"inputs_embeds": embeddings, "attention_mask": self._ones[:, :total]}
        if self._wants_positions:
            feeds["position_ids"] = self._positions(position, count)
        try:
            past, present = self._cache.prepare(position, total)
        except MemoryError as error:
            raise no_memory(total) from error
        into = dict(present)
        if self._logits_shape is not None:
            into["logits"] = np.empty(self._logits_shape, self._logits_dtype)
        outputs = self._graph.run({**feeds, **past}, into)
        self._cache.commit()
        return np.asarray(outputs["logits"][0, -1], np.float32)

    def _forget(self, position: int) -> None:
        self._cache.rewind(position)

    def _save(self) -> dict[str, Array]:
        return self._cache.save(self._position)

    def _kept(self, position: int) -> Sequence[TensorSpec]:
        return [TensorSpec(s.past, s.dtype, (1, s.heads, position, s.head_dim)) for s in self._slots]

    def _load(self, arrays: Mapping[str, Array], position: int) -> None:
        try:
            self._cache.load(arrays, position)
        except MemoryError as error:
            raise no_memory(position) from error

    def _positions(self, position: int, count: int) -> NDArray[np.int64]:
        if count > 1:
            return np.arange(position, position + count, dtype=np.int64)[None]
        self._here[0, 0] = position
        return self._here


def _slot(past: TensorSpec, spec: DecoderSpec) -> CacheSlot:
    if len(past.shape) != 4 or (past.shape[1], past.shape[3]) != (spec.kv_heads, spec.head_dim):
        raise EngineError(
            f"{past.name} is {list(past.shape)}, expected [1, {spec.kv_heads}, length, {spec.head_dim}]",
            hint="export the bundle again",
        )
    present = past.name.replace("past_key_values.", "present.")
    return CacheSlot(past.name, present, past.dtype, spec.kv_heads, spec.head_dim)


def _verify(part: PartFiles) -> str:
    return f"edge verify {part.files[0].parent}"
