"""Roofline: time as bytes over bandwidth and operations over throughput. Pure arithmetic.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", 2009.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.planning.sizes import Sizes


@dataclass(frozen=True)
class Speed:
    """What a device can do at most. None: not known, and no time is predicted from it."""

    bandwidth: float | None  # bytes/s
    int8: float | None  # operations/s, a product and a sum being two
    fp32: float | None


@dataclass(frozen=True)
class Utilisation:
    """The shares of a device's speed that the kernels reach."""

    decode: float  # of the bandwidth
    prefill: float  # of int8, or of fp32 where weights are not rounded
    vision: float
    attention: float  # of fp32


# Calibrated on one machine with today's kernels (`BENCHMARKS.md`); a Raspberry Pi 5's published figures agree.
PROCESSOR = Utilisation(decode=0.75, prefill=0.21, vision=0.6, attention=0.6)
# llama.cpp on CUDA, as published for a Jetson AGX Orin; of fp16 throughput, and of the theoretical bandwidth.
GRAPHICS = Utilisation(decode=0.33, prefill=0.04, vision=0.03, attention=0.04)
READING = 0.75  # of a theoretical bandwidth that reading reaches


@dataclass(frozen=True)
class Work:
    """One stage: operations by the arithmetic that does them, and bytes that move."""

    int8: float = 0.0
    fp32: float = 0.0
    attention: float = 0.0
    bytes: float = 0.0

    @property
    def flop(self) -> float:
        return self.int8 + self.fp32 + self.attention


def encode(sizes: Sizes, quantised: bool) -> Work:
    """One image through the vision encoder and the projector, view by view."""
    linear = 2.0 * sizes.vision * sizes.positions * sizes.views
    attention = 4.0 * sizes.positions**2 * sizes.width * sizes.layers * sizes.views
    return Work(int8=linear, attention=attention) if quantised else Work(fp32=linear, attention=attention)


def prefill(sizes: Sizes, tokens: int, quantised: bool, weight_bytes: float) -> Work:
    """A prompt of so many positions in one pass; the head sees the last one only. The attention is causal."""
    spec = sizes.spec
    linear = 2.0 * (sizes.decoder * tokens + sizes.head)
    attention = 2.0 * tokens**2 * spec.heads * spec.head_dim * spec.layers
    moved = weight_bytes + activations_moved(sizes, tokens)
    if quantised:
        return Work(int8=linear, attention=attention, bytes=moved)
    return Work(fp32=linear, attention=attention, bytes=moved)


def step(sizes: Sizes, position: int, weight_bytes: float, cache_item: float) -> Work:
    """One token after so many: all weights but the embedding table, and the whole KV cache."""
    spec = sizes.spec
    cached = 2.0 * spec.layers * spec.kv_heads * spec.head_dim * cache_item * position
    return Work(int8=2.0 * (sizes.decoder + sizes.head), bytes=weight_bytes + cached)


def activations_moved(sizes: Sizes, tokens: int, item: float = 2.0) -> float:
    """Bytes that the operators of one prompt read and write, each on its own, without weights: what nothing fused
    would move. Scores are read and written by the softmax, and by the products before and after it."""
    spec = sizes.spec
    hidden, kept, ffn = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, sizes.ffn
    linear = 2 * (spec.hidden + hidden) + 2 * (spec.hidden + kept) + (2 + sizes.gated) * (spec.hidden + ffn)
    pointwise = 4 * spec.hidden + 6 * spec.hidden + (2 + 2 * sizes.gated) * ffn  # two norms, two sums, the activation
    attention = 4 * hidden + 4 * spec.heads * tokens
    return item * tokens * spec.layers * (linear + pointwise + attention)


def seconds(work: Work, speed: Speed, share: float, use: Utilisation) -> float | None:
    """The longer of computing and moving; `share` is what the kernels of this stage reach of a peak."""
    times: list[float] = []
    for amount, peak, reached in (
        (work.int8, speed.int8, share),
        (work.fp32, speed.fp32, share),
        (work.attention, speed.fp32, use.attention),
    ):
        if amount:
            if not peak:
                return None
            times.append(amount / (peak * reached))
    moving = work.bytes / (speed.bandwidth * use.decode) if speed.bandwidth else 0.0
    return max(sum(times), moving) if times or moving else None


def token_seconds(work: Work, speed: Speed, use: Utilisation) -> float | None:
    """A token is bound by what it reads."""
    return work.bytes / (speed.bandwidth * use.decode) if speed.bandwidth else None


def vision_activations(sizes: Sizes) -> int:
    """Bytes alive at once while an image is encoded: fp32, a dozen rows of the width at each position, all scores."""
    positions = sizes.positions
    return 4 * (12 * positions * sizes.width + sizes.heads * positions**2) if sizes.vision else 0


def decoder_activations(spec_hidden: int, positions: int) -> int:
    """Bytes alive at once while so many positions are computed: fp32, a dozen rows of the width at each."""
    return 4 * 12 * positions * spec_hidden
