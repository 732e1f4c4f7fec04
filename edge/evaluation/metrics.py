"""Figures of several tasks: a share of right answers, a mean score, and what is computed from sums over images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from edge.evaluation.intervals import Figure, Sums, percentile, replicates, wilson
from edge.evaluation.task import Metric, Scored


def share(name: str, right: Sequence[bool], part: str = "") -> list[Metric]:
    """The share of what is right, in percent, with Wilson's interval; of nothing, none."""
    if not right:
        return []
    low, high = wilson(sum(right), len(right))
    return [Metric(name, part, 100 * sum(right) / len(right), 100 * low, 100 * high, len(right))]


def accuracy(scored: Iterable[Scored], name: str = "accuracy", part: str = "") -> list[Metric]:
    """The share of questions whose score is 1."""
    return share(name, [one.score == 1 for one in scored], part)


def mean_score(scored: Sequence[Scored], name: str = "accuracy", part: str = "") -> list[Metric]:
    """The mean of graded scores, in percent; the interval is the bootstrap's over images."""
    if not scored:
        return []
    sums = cluster_sums(scored, lambda one: (one.score, 1.0))
    value = float(ratio(sums.sum(axis=0)))
    low, high = percentile(replicates(sums, ratio), value, len(sums))
    return [Metric(name, part, 100 * value, 100 * low, 100 * high, len(scored))]


def ratio(sums: Sums) -> Sums:
    """The first sum over the second, 0 where that is 0: [..., 2] → [...]."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.zeros(sums.shape[:-1]), where=sums[..., 1] != 0)


def cluster_sums(scored: Sequence[Scored], columns: Callable[[Scored], Sequence[float]]) -> Sums:
    """For each image, the sums of what `columns` gives for its questions: f64 [images, k]."""
    found: dict[str, Sums] = {}
    for one in scored:
        row = np.asarray(columns(one), np.float64)
        found[one.question.cluster] = found.get(one.question.cluster, np.zeros_like(row)) + row
    return np.stack(list(found.values()))


def resampled(name: str, sums: Sums, figure: Figure, count: int, part: str = "") -> Metric:
    """A figure between 0 and 1 of sums over images, in percent, with the bootstrap's interval."""
    value = float(figure(sums.sum(axis=0)))
    low, high = percentile(replicates(sums, figure), value, len(sums))
    return Metric(name, part, 100 * value, 100 * low, 100 * high, count)
