"""Probe of memory bandwidth and matmul speed, some two seconds long.

The matmuls are those of an engine that lends them, else numpy's.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np

ARRAY = 64 << 20  # bytes that a thread reads: more than caches hold
SIDE = 768  # of the square matrices that are multiplied
LEAST, ENOUGH = 3, 0.2  # how often, and for how many seconds
MATMUL = 0.8  # of a peak that one large matmul reaches
CHAINED = 1.15  # of the speed of one row's matmul alone: threads stay awake in a token's many
# int8 products to fp32 ones in a cycle, by the widest instruction that there is (Intel's and Arm's manuals).
_FACTORS = {
    "amx": (16, "tiles"),
    "sme": (8, "tiles"),
    "i8mm": (8, "int8 matrix products"),
    "avx512_vnni": (4, "int8 dot products"),
    "avx_vnni": (4, "int8 dot products"),
    "dotprod": (4, "int8 dot products"),
}


@dataclass(frozen=True)
class Matmuls:
    """What an engine's kernels reach (`edge.types.Runtime`, `matmuls`)."""

    decoding: float  # bytes/s of 4-bit weights, with their scales, times one row
    int8: float  # operations/s, a product and a sum being two, of a prompt's many rows
    fp32: float


@dataclass(frozen=True)
class Lender:
    """An engine that measures its own matmuls (`edge.engines.matmul_lender`)."""

    name: str
    matmuls: Callable[[int, int], Matmuls]  # of so many threads, in so many bytes of free memory


@dataclass(frozen=True)
class Speed:
    bandwidth: float  # bytes/s, reading on all threads
    fp32: float  # operations/s
    int8: float | None = None
    decoding: float | None = None  # as of Matmuls
    of: str = "numpy"  # whose products those are


def measure(threads: int, memory: int, lender: Lender | None = None) -> Speed:
    """Takes one or two seconds, and not more than a quarter of the free memory."""
    length = max(1 << 16, min(ARRAY, memory // 8 // threads)) // 4
    arrays = [np.ones(length, np.int32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = usual(lambda: list(pool.map(np.max, arrays)), memory)  # a reduction lets the other threads run
    bandwidth = 4 * length * threads / seconds
    if lender:
        found = lender.matmuls(threads, memory)
        return Speed(bandwidth, found.fp32, found.int8, found.decoding, lender.name)
    square = np.ones((SIDE, SIDE), np.float32)
    return Speed(bandwidth, 2 * SIDE**3 / best(lambda: square @ square))


def int8_factor(isa: Sequence[str]) -> tuple[int, str]:
    """How many int8 products stand against one of fp32, and why. numpy has no fast ones that could be measured."""
    return next((_FACTORS[name] for name in _FACTORS if name in isa), (2, "no int8 dot products"))


def best(work: Callable[[], object]) -> float:
    """Seconds of computing: of the quickest of some runs, as what else runs only makes it slower."""
    return min(_times(work, lambda: None))


def usual(work: Callable[[], object], memory: int) -> float:
    """Seconds of reading: the median of some runs, each with caches that hold none of it, as in a large model."""
    other = np.ones(max(1 << 16, min(ARRAY, memory // 8)) // 4, np.int32)
    return statistics.median(_times(work, other.max))


def _times(work: Callable[[], object], before: Callable[[], object]) -> list[float]:
    work()  # the first time, threads start and pages come
    times: list[float] = []
    while len(times) < LEAST or sum(times) < ENOUGH:
        before()
        started = perf_counter()
        work()
        times.append(max(perf_counter() - started, 1e-6))  # a clock may stand still
    return times
