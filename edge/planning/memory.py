"""Peak memory of a plan, and what to give up where there is too little. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from edge.planning.roofline import decoder_activations, vision_activations
from edge.planning.sizes import Sizes
from edge.spec import DecoderSpec
from edge.types import CacheKind

STEP = 256  # a context that was not asked for shrinks by this until it fits
RUNTIME = 90_000_000  # Python, numpy and two engines' libraries, measured (`BENCHMARKS.md`)
BATCH = 512  # positions that an engine computes at a time, and first makes room for
ITEMS: dict[CacheKind, float] = {"f16": 2.0, "q8_0": 34 / 32}  # bytes of a number in the KV cache; a scale for 32


@dataclass(frozen=True)
class Need:
    """What a model takes apart from its context, in bytes."""

    sizes: Sizes
    vision: int  # weights as they lie in memory
    decoder: int
    item: int  # bytes of a number in the KV cache, where a graph fixes it
    kinds: tuple[CacheKind, ...]  # how an engine that keeps its own KV cache can store it; none: a graph fixes that
    copies: int = 1  # how often the KV cache lies in memory, once it outgrew its first allocation
    runtime: int = RUNTIME  # Python and libraries


@dataclass(frozen=True)
class Memory:
    """Bytes. The parts of the peak; where vision encoder and decoder are open one at a time, the larger
    side counts."""

    runtime: int
    vision: int
    decoder: int
    cache: int
    activations: tuple[int, int]  # of the vision part, of the decoder
    one_at_a_time: bool

    @property
    def peak(self) -> int:
        seeing, speaking = self.vision + self.activations[0], self.decoder + self.cache + self.activations[1]
        return self.runtime + (max(seeing, speaking) if self.one_at_a_time else seeing + speaking)

    def room(self, limit: int) -> int:
        """What of so many bytes is left while an image is read: nothing computes meanwhile."""
        speaking = self.decoder + self.cache
        held = max(self.vision, speaking) if self.one_at_a_time else self.vision + speaking
        return limit - self.runtime - held


@dataclass(frozen=True)
class Settled:
    """How a model fits. `cache` None: as the engine likes."""

    context: int
    cache: CacheKind | None
    one_at_a_time: bool
    memory: Memory


def cache_bytes(spec: DecoderSpec, item: float) -> int:
    """What one position of the key-value cache takes."""
    return round(2 * spec.layers * spec.kv_heads * spec.head_dim * item)


def memory(need: Need, context: int, cache: CacheKind | None = None, one_at_a_time: bool = False) -> Memory:
    """At a full context of so many positions."""
    spec = need.sizes.spec
    kept = cache_bytes(spec, ITEMS[cache or "f16"] if need.kinds else need.item) * context
    # A graph takes a prompt whole, and has its inputs and outputs beside each other.
    speaking = decoder_activations(spec.hidden, min(context, BATCH) if need.kinds else 2 * context)
    activations = vision_activations(need.sizes), speaking
    kept *= need.copies if context > BATCH else 1
    return Memory(need.runtime, need.vision, need.decoder, kept, activations, one_at_a_time)


def settle(need: Need, limit: int, asked: int = 0, cache: CacheKind | None = None) -> Settled | None:
    """The first way that fits `limit` bytes: everything open; the KV cache in 8 bits; one side open at a time; both.
    Then, where no context was asked for, the longest shorter one. None where nothing fits."""
    for way, kind in _ways(need, cache):
        if (found := memory(need, asked or need.sizes.spec.context, kind, way)).peak <= limit:
            return Settled(asked or need.sizes.spec.context, kind, way, found)
    return None if asked else shrunk(need, limit, cache)


def shrunk(need: Need, limit: int, cache: CacheKind | None = None) -> Settled | None:
    """With the most thrifty way: the longest context that fits, of at least an image and a question."""
    (way, kind), whole = list(_ways(need, cache))[-1], need.sizes.spec.context
    shorter = range(whole // STEP * STEP, _shortest(need) - 1, -STEP)
    for context in chain((whole,), shorter):
        if (found := memory(need, context, kind, way)).peak <= limit:
            return Settled(context, kind, way, found)
    return None


def least(need: Need, cache: CacheKind | None = None) -> Memory:
    """The least that it can do with."""
    way, kind = list(_ways(need, cache))[-1]
    return memory(need, _shortest(need), kind, way)


def _shortest(need: Need) -> int:
    """A context that holds an image and a question."""
    return min(need.sizes.spec.context, -(-(need.sizes.image_tokens + STEP // 2) // STEP) * STEP)


def _ways(need: Need, cache: CacheKind | None) -> Iterator[tuple[bool, CacheKind | None]]:
    """(one side open at a time, how the KV cache is stored): what costs least first."""
    kinds: Sequence[CacheKind | None] = [None, "q8_0"] if "q8_0" in need.kinds and not cache else [cache]
    for one_at_a_time in [False, True] if need.vision else [False]:
        for kind in kinds:
            yield one_at_a_time, kind
