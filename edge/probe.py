"""How fast this machine reads memory and multiplies, measured briefly with numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np

ARRAY = 64 << 20  # bytes a thread reads: more than the caches hold
SIDE = 768  # of the square matrices that are multiplied
LEAST, ENOUGH = 3, 0.08  # how often, and for how many seconds; the best counts: what else runs only makes it slower
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
class Speed:
    bandwidth: float  # bytes/s, reading on all threads
    fp32: float  # FLOP/s


def measure(threads: int, memory: int) -> Speed:
    """Takes some 0.2 s, and not more than an eighth of the free memory."""
    length = max(1 << 16, min(ARRAY, memory // 8 // threads)) // 4
    arrays = [np.ones(length, np.int32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = _best(lambda: list(pool.map(np.max, arrays)))  # a reduction lets the other threads run
    square = np.ones((SIDE, SIDE), np.float32)
    product = _best(lambda: square @ square)
    return Speed(4 * length * threads / seconds, 2 * SIDE**3 / product)


def int8_factor(isa: Sequence[str]) -> tuple[int, str]:
    """How many int8 products stand against one of fp32, and why. numpy has no fast ones that could be measured."""
    return next((_FACTORS[name] for name in _FACTORS if name in isa), (2, "no int8 dot products"))


def _best(work: Callable[[], object]) -> float:
    work()  # the first time, threads start and pages come
    times: list[float] = []
    while len(times) < LEAST or sum(times) < ENOUGH:
        started = perf_counter()
        work()
        times.append(max(perf_counter() - started, 1e-6))  # a clock may stand still
    return min(times)
