"""Two runs over the same questions: McNemar's test, the difference with its interval, and whether it is no worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.evaluation.intervals import Interval, Z

EXACT_BELOW = 25  # discordant pairs
Verdict = Literal["no worse", "worse", "open"]


@dataclass(frozen=True)
class Paired:
    """The second run against the first. Differences are of mean scores: −1 to 1."""

    count: int  # questions
    better: int  # whose score is higher in the second run
    worse: int
    difference: float
    low: float
    high: float
    p: float  # of as uneven a split into better and worse, were neither run better
    exact: bool  # p is the binomial one

    def verdict(self, margin: float) -> Verdict:
        """Non-inferiority: no worse where the whole 95 % interval lies above −margin, worse where it lies below; open
        where it holds −margin. G. Piaggio et al., Reporting of noninferiority trials, JAMA 308 (2012)."""
        return "no worse" if self.low > -margin else "worse" if self.high < -margin else "open"


def compare(first: Sequence[float], second: Sequence[float], clusters: Sequence[str]) -> Paired:
    """Scores of the same questions in the same order, 0 to 1, and the image that each is about.

    Of right and wrong the test is McNemar's; of graded scores it is the sign test, of which that is the special case.
    """
    deltas = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    better, worse = int((deltas > 0).sum()), int((deltas < 0).sum())
    low, high = interval(deltas, clusters)
    exact = better + worse < EXACT_BELOW
    return Paired(len(deltas), better, worse, float(deltas.mean()), low, high, mcnemar(better, worse), exact)


def mcnemar(better: int, worse: int) -> float:
    """Two-sided p: exact binomial below 25 discordant pairs, else chi-squared with continuity correction.

    Q. McNemar, Note on the sampling error of the difference between correlated proportions or percentages,
    Psychometrika 12 (1947); the correction is A. L. Edwards's, Psychometrika 13 (1948).
    """
    count = better + worse
    if count < EXACT_BELOW:
        tail = sum(math.comb(count, k) for k in range(min(better, worse) + 1))
        return min(1.0, 2 * tail / (1 << count))
    chi_squared = max(abs(better - worse) - 1, 0) ** 2 / count
    return math.erfc(math.sqrt(chi_squared / 2))


def interval(deltas: Sequence[float] | NDArray[np.float64], clusters: Sequence[str]) -> Interval:
    """95 % interval of the mean of paired differences of −1 to 1: Wald's, after half a pair more of +1, half of −1, and
    one of 0, so that a few pairs that all agree do not claim certainty.

    A. Agresti, Y. Min, Simple improved confidence intervals for comparing matched proportions, Statistics in Medicine
    24 (2005). The variance is that of independent questions or of independent images, whichever is larger.
    """
    deltas = np.asarray(deltas, np.float64)
    count = len(deltas) + 2
    centre = float(deltas.sum()) / count
    # Added pairs: ½(1 − c)² + ½(−1 − c)² + c² = 1 + 2c².
    added = 1 + 2 * centre**2
    _, numbers = np.unique(np.asarray(clusters), return_inverse=True)
    residuals = deltas - centre
    by_image = np.bincount(numbers.ravel(), weights=residuals)
    variance = max(float(residuals @ residuals), float(by_image @ by_image)) + added
    half = Z * math.sqrt(variance) / count
    return max(-1.0, centre - half), min(1.0, centre + half)
