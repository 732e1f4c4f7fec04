"""How weights become small integers. Every result knows the float weight that it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 32
# Shares of the largest value that are tried as the end of the 4-bit range: clipping it pays where the rest is small.
_REACH = (1.0, 0.94, 0.88, 0.82, 0.76, 0.70)
_AT_ONCE = 1 << 18  # elements; a chunk of the search stays in a processor's cache


@dataclass(frozen=True)
class Blockwise:
    """Symmetric integers with one scale for each block of a row (the last block is padded with zeros)."""

    values: Tensor  # int8 [N, blocks, BLOCK]
    scales: Tensor  # float32 [N, blocks]
    columns: int
    bits: int

    def dequantized(self) -> Tensor:
        """`[N, columns]` float32."""
        return (self.values.float() * self.scales[..., None]).flatten(1)[:, : self.columns]


@dataclass(frozen=True)
class PerChannel:
    """Symmetric int8 with one scale for each row."""

    values: Tensor  # int8 [N, K]
    scales: Tensor  # float32 [N]

    def dequantized(self) -> Tensor:
        return self.values.float() * self.scales[:, None]


def per_channel(weight: Tensor) -> PerChannel:
    """weight `[N, K]` float32."""
    scales = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return PerChannel((weight / scales[:, None]).round().to(torch.int8), scales)


def per_tensor(weight: Tensor) -> PerChannel:
    """weight `[N, K]` float32; one scale for all rows."""
    scale = (weight.abs().amax() / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return PerChannel((weight / scale).round().to(torch.int8), scale[None])


def blockwise(weight: Tensor, bits: int, importance: Tensor | None = None, *, positive: bool = False) -> Blockwise:
    """weight `[N, K]` float32; bits 4 or 8. `importance` `[K]` weighs the error of each column: the mean square of what
    it is multiplied with makes it the error of the product. `positive`: 4-bit scales are positive, and have no more
    digits than both bfloat16 and float16 (as XNNPACK takes them)."""
    rows, columns = weight.shape
    blocks = -(-columns // BLOCK)
    values = torch.empty(rows, blocks, BLOCK, dtype=torch.int8)
    scales = torch.empty(rows, blocks)
    step = max(1, _AT_ONCE // (blocks * BLOCK))
    if importance is None:
        importance = torch.ones(columns)
    # No column is without any weight: what calibration never lit may be lit by another picture.
    columns_weigh = importance / importance.mean().clamp(min=torch.finfo(torch.float32).tiny) + 0.01
    weigh = torch.nn.functional.pad(columns_weigh, (0, blocks * BLOCK - columns)).view(blocks, BLOCK)
    for start in range(0, rows, step):
        chunk = weight[start : start + step]
        padded = torch.nn.functional.pad(chunk, (0, blocks * BLOCK - columns)).view(-1, blocks, BLOCK)
        found = _four_bits(padded, weigh, positive) if bits == 4 else _eight_bits(padded)
        values[start : start + step], scales[start : start + step] = found
    return Blockwise(values, scales, columns, bits)


def _eight_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    scales = (x.abs().amax(dim=-1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (x / scales[..., None]).round().to(torch.int8), scales


def _four_bits(x: Tensor, weigh: Tensor, positive: bool) -> tuple[Tensor, Tensor]:
    """The levels are -8..7, so the largest value of a block goes to -8, whatever its sign; then the scale is fitted by
    weighted least squares, and the best of a few reaches is kept for each block. Where scales are positive a positive
    peak ends at 7. x `[N, blocks, BLOCK]`."""
    peak = x.gather(-1, x.abs().argmax(dim=-1, keepdim=True))[..., 0]
    end = torch.where(peak > 0, 7.0, -8.0) if positive else torch.full_like(peak, -8.0)
    best = torch.full_like(peak, torch.inf)
    values = torch.zeros_like(x, dtype=torch.int8)
    scales = torch.ones_like(peak)
    weighed = x * weigh
    energy = (x * weighed).sum(-1)
    for reach in _REACH:
        scale = peak * reach / end
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        levels = (x / scale[..., None]).round_().clamp_(-8, 7)
        across, along = (weighed * levels).sum(-1), (levels.square() * weigh).sum(-1)
        fitted = torch.where(along > 0, across / along.clamp(min=torch.finfo(torch.float32).tiny), scale)
        if positive:
            fitted = _short(fitted)
        error = energy - 2 * across * fitted + along * fitted.square()
        better = error < best
        best = torch.where(better, error, best)
        scales = torch.where(better, fitted, scales)
        values = torch.where(better[..., None], levels.to(torch.int8), values)
    return values, scales


def _short(scales: Tensor) -> Tensor:
    """Normal numbers of float16, with the digits of bfloat16."""
    half = torch.finfo(torch.float16)
    return scales.clamp(half.tiny, half.max).bfloat16().float()
