"""Confidence intervals of 95 %: Wilson's for proportions, the bootstrap over clusters for all else."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054  # the normal quantile of 97.5 %
RESAMPLES = 2000
Interval = tuple[float, float]
Sums = NDArray[np.float64]
Figure = Callable[[Sums], NDArray[np.float64]]  # [..., k] sums over clusters → [...]


def wilson(right: float, count: int) -> Interval:
    """Of the proportion `right / count`; questions are taken as independent. Of nothing: 0 to 1.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    if not count:
        return 0.0, 1.0
    share, square = right / count, Z * Z
    centre = (right + square / 2) / (count + square)
    half = Z / (count + square) * math.sqrt(max(0.0, count * share * (1 - share)) + square / 4)
    # At 0 and at 1 the bound is the share itself, but for rounding.
    return min(max(0.0, centre - half), share), max(min(1.0, centre + half), share)


def replicates(sums: Sums, figure: Figure, stream: int = 0) -> NDArray[np.float64]:
    """The figure of 2000 samples of the clusters, drawn with replacement: f64 [2000].

    `sums` are each cluster's, f64 [clusters, k]. The seed is fixed; figures that are added take streams of their own.
    B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap (1993), chapter 8: clusters are drawn whole, as
    answers about one image depend on each other.
    """
    random = np.random.default_rng([2023, stream])
    count = len(sums)
    drawn = [np.bincount(random.integers(0, count, count), minlength=count) @ sums for _ in range(RESAMPLES)]
    return figure(np.array(drawn))


def percentile(found: NDArray[np.float64], value: float, clusters: int, top: float = 1.0) -> Interval:
    """The middle 95 % of the replicates, widened to hold the value, which ranges from 0 to `top`.

    Where all clusters are alike, replicates do not vary: Wilson's interval of as many questions as there are clusters
    says how little a few of them tell.
    """
    if np.ptp(found) < 1e-12 * top:
        low, high = wilson(value / top * clusters, clusters)
        return low * top, high * top
    low, high = (float(bound) for bound in np.percentile(found, (2.5, 97.5)))
    return min(low, value), max(high, value)
