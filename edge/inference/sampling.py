"""Sampling: picks a token id from logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.errors import EngineError, UsageError


@dataclass(frozen=True)
class Sampling:
    """How to pick. Temperature 0 takes the most probable token; top_k 0, top_p 1 and repeat_penalty 1 change nothing.

    Raises UsageError on a value outside its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repeat_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or more")
        _require("top-k", self.top_k, self.top_k >= 0, "0 or more")
        _require("top-p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _require("repeat-penalty", self.repeat_penalty, 0 < self.repeat_penalty < math.inf, "above 0")
        _require("seed", self.seed, self.seed is None or self.seed >= 0, "0 or more")


class Sampler:
    """Picks token after token; the same seed picks the same ones."""

    finished = False  # a model ends its answer by itself

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def pick(
        self, logits: NDArray[np.float32], history: Sequence[int], allowed: NDArray[np.bool_] | None = None
    ) -> int:
        """An id, from logits [vocab]: penalty on the ids in `history`, then temperature, top-k, top-p, among those that
        are `allowed`, [vocab].

        Equal logits count in the order of their ids. Raises EngineError when a logit is NaN or none is finite.
        """
        scores = self._penalised(logits, history)
        if allowed is not None:
            scores = np.where(allowed, scores, np.float32(-np.inf))
        best = int(np.argmax(scores))  # the first NaN, if there is one
        if not math.isfinite(scores[best]):
            raise EngineError(
                f"the decoder gave the logit {scores[best]} for token {best}",
                hint="edge verify BUNDLE checks the parts",
            )
        if self._sampling.temperature == 0:
            return best
        ids = self._top(scores)
        with np.errstate(over="ignore"):  # far below the best, at a tiny temperature: -inf, which weighs nothing
            gaps = (scores[ids] - scores[best]) / np.float64(self._sampling.temperature)
            weights = np.exp(gaps.astype(np.float32))  # single precision is 15 times as fast here
        ids, weights = self._nucleus(ids, weights)
        mass = np.cumsum(weights.astype(np.float64))
        return int(ids[np.searchsorted(mass, self._random.random() * mass[-1], side="right")])

    def _penalised(self, logits: NDArray[np.float32], history: Sequence[int]) -> NDArray[np.float32]:
        penalty = self._sampling.repeat_penalty
        if penalty == 1 or not len(history):
            return logits
        scores = logits.copy()
        ids = np.asarray(history, dtype=np.int64)
        said = scores[ids]  # read before anything is written: an id that was said twice is penalised once
        scores[ids] = np.where(said > 0, said / penalty, said * penalty)
        return scores

    def _top(self, scores: NDArray[np.float32]) -> NDArray[np.int64]:
        """The ids of the top_k best scores; the lower ids of equal ones."""
        k = self._sampling.top_k
        if not 0 < k < len(scores):
            return np.arange(len(scores))
        ids = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
        return ids[_descending(scores[ids])[:k]]

    def _nucleus(
        self, ids: NDArray[np.int64], weights: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The fewest ids whose mass reaches top_p, with their weights."""
        p = self._sampling.top_p
        if p == 1:
            return ids, weights
        total = weights.sum(dtype=np.float64)
        # All that are lighter than this weigh less than 1 - p together: only the rest needs sorting.
        heavy = np.flatnonzero(weights >= (1 - p) * total / len(weights))
        heavy = heavy[_descending(weights[heavy])]
        kept = heavy[: int(np.searchsorted(np.cumsum(weights[heavy].astype(np.float64)), p * total)) + 1]
        return ids[kept], weights[kept]


def _descending(values: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.argsort(-values, kind="stable")


def _require(name: str, value: float | None, ok: bool, rule: str) -> None:
    if not ok:
        raise UsageError(f"{name} is {value}; it must be {rule}", hint=f"--{name} takes a number {rule}")
