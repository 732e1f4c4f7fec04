"""4-bit palettes: weights as places in a small table, fitted by k-means to the weights of a few rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = 16
_ROWS = (16, 8, 4, 2, 1)  # of a group: the first that divides
_BINS = 2048  # k-means runs on a histogram: a group has some 100,000 weights, and few distinct ones
_STEPS = 12
_AT_ONCE = 1 << 24  # weights


@dataclass(frozen=True)
class Palettized:
    indices: Tensor  # uint8 [N, K], below LEVELS
    tables: Tensor  # float16 [groups, LEVELS], ascending

    def dense(self) -> Tensor:
        """`[N, K]` float32."""
        groups = len(self.tables)
        flat = self.indices.view(groups, -1).long()
        return self.tables.float().gather(1, flat).view(self.indices.shape)


def palettized(weight: Tensor, importance: Tensor | None = None) -> Palettized:
    """weight `[N, K]` float32; `importance` `[K]` weighs the error of each column."""
    rows, columns = weight.shape
    size = next(count for count in _ROWS if rows % count == 0)
    weigh = torch.ones(columns) if importance is None else importance / importance.mean().clamp(min=1e-30) + 0.01
    indices = torch.empty(rows, columns, dtype=torch.uint8)
    tables = torch.empty(rows // size, LEVELS, dtype=torch.float16)
    step = max(size, _AT_ONCE // columns // size * size)
    for start in range(0, rows, step):
        chunk = weight[start : start + step].reshape(-1, size * columns)
        found = _fit(chunk, weigh.repeat(size)).half()
        tables[start // size : start // size + len(chunk)] = found
        levels = found.float()
        middles = (levels[:, 1:] + levels[:, :-1]) / 2
        indices[start : start + step] = torch.searchsorted(middles, chunk).to(torch.uint8).view(-1, columns)
    return Palettized(indices, tables)


def _fit(x: Tensor, weigh: Tensor) -> Tensor:
    """x `[groups, n]`, weigh `[n]` -> the best LEVELS numbers of each group, ascending, by Lloyd's algorithm."""
    low, high = x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)
    width = ((high - low) / _BINS).clamp(min=1e-12)
    bins = ((x - low) / width).long().clamp_(max=_BINS - 1)
    mass = torch.zeros(len(x), _BINS).scatter_add_(1, bins, weigh.expand_as(x))
    sums = torch.zeros(len(x), _BINS).scatter_add_(1, bins, x * weigh)
    mass, sums = (torch.nn.functional.pad(t.double().cumsum(1), (1, 0)) for t in (mass, sums))
    # Begin at the quantiles: no level is without weights.
    shares = (torch.arange(LEVELS) + 0.5) / LEVELS * mass[:, -1:]
    at = torch.searchsorted(mass, shares.contiguous()).clamp_(max=_BINS)
    levels = low + (at - 0.5) * width
    for _ in range(_STEPS):
        middles = (levels[:, 1:] + levels[:, :-1]) / 2
        edges = ((middles - low) / width).round().long().clamp_(0, _BINS)
        edges = torch.nn.functional.pad(edges, (1, 0))
        edges = torch.cat([edges, torch.full_like(edges[:, :1], _BINS)], dim=1)  # [groups, LEVELS + 1]
        inside = mass.gather(1, edges).diff(dim=1)
        total = sums.gather(1, edges).diff(dim=1)
        levels = torch.where(inside > 0, total / inside.clamp(min=1e-30), levels.double()).float()
    return levels.sort(dim=1).values
