"""Decoder for ONNX graphs with `past_key_values` inputs. See `kv_decoder` for the names they use."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge.decoders.embedding_table import EmbeddingTable
from edge.decoders.kv_cache import Cache, CacheSlot, FixedCache, GrowingCache
from edge.errors import ContextError, EngineError
from edge.spec import DecoderSpec
from edge.types import Array, Decoder, Graph, PartFiles, Segment, TensorSpec

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
    elif isinstance(past, int):
        context = min(context, past)
        cache = FixedCache(slots, past)
    else:
        cache = FixedCache(slots, context)
    table = EmbeddingTable.open(part.files, spec.vocab, spec.hidden)
    return KVGraphDecoder(graph, table, cache, spec, context)


class KVGraphDecoder:
    def __init__(self, graph: Graph, table: EmbeddingTable, cache: Cache, spec: DecoderSpec, context: int) -> None:
        self._graph = graph
        self._table = table
        self._cache = cache
        self._context = context
        self._position = 0
        self._wants_positions = any(t.name == "position_ids" for t in graph.inputs)
        # One row at a time is the common case, and its arrays stay where the engine has bound them.
        self._row = np.empty((1, 1, spec.hidden), np.float32)
        self._here = np.zeros((1, 1), np.int64)
        self._ones = np.ones((1, context), np.int64)
        logits = next(t for t in graph.outputs if t.name == "logits")
        fixed = tuple(d for d in logits.shape if isinstance(d, int))
        self._logits_shape = fixed if len(fixed) == len(logits.shape) else None  # None: the engine allocates
        self._logits_dtype = logits.dtype

    @property
    def position(self) -> int:
        return self._position

    def extend(self, segments: Sequence[Segment]) -> NDArray[np.float32]:
        total = position_after(segments, self._position, self._context)
        count = total - self._position
        feeds: dict[str, Array] = {
            "inputs_embeds": self._embed(segments, count),
            "attention_mask": self._ones[:, :total],
        }
        if self._wants_positions:
            feeds["position_ids"] = self._positions(count)
        try:
            past, present = self._cache.prepare(self._position, total)
        except MemoryError as error:
            raise EngineError(
                f"no memory for the keys and values of {total} positions", hint="load with a smaller context"
            ) from error
        into = dict(present)
        if self._logits_shape is not None:
            into["logits"] = np.empty(self._logits_shape, self._logits_dtype)
        outputs = self._graph.run({**feeds, **past}, into)
        self._cache.commit()
        self._position = total
        return np.asarray(outputs["logits"][0, -1], np.float32)

    def rewind(self, position: int) -> None:
        require_held(position, self._position)
        if position < self._position:
            self._cache.rewind(position)
            self._position = position

    def _embed(self, segments: Sequence[Segment], count: int) -> NDArray[np.float32]:
        rows = self._row if count == 1 else np.empty((1, count, self._table.hidden), np.float32)
        self._table.embed(segments, rows[0])
        return rows

    def _positions(self, count: int) -> NDArray[np.int64]:
        if count > 1:
            return np.arange(self._position, self._position + count, dtype=np.int64)[None]
        self._here[0, 0] = self._position
        return self._here


def position_after(segments: Sequence[Segment], position: int, context: int) -> int:
    """Where a decoder stands when it is extended. Raises EngineError where it is by nothing, ContextError where the
    context does not hold it."""
    total = position + sum(map(len, segments))
    if total == position:
        raise EngineError("a decoder was extended by nothing")
    if total > context:
        raise too_long(total, context)
    return total


def require_held(position: int, held: int) -> None:
    """Raises EngineError when a decoder that holds so many positions is rewound to another."""
    if not 0 <= position <= held:
        raise EngineError(f"cannot rewind to {position} from {held}")


def too_long(needed: int, context: int) -> ContextError:
    return ContextError(
        f"the prompt needs {needed} positions, and the context holds {context}",
        hint="ask something shorter, or export again with a larger --context",
    )


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
