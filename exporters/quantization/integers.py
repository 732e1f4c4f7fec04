"""How weights become small integers. Every result knows the float weight that it stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exporters.quantization.threads import each

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
        return self.values.float().mul_(self.scales[..., None]).flatten(1)[:, : self.columns]

    def halved(self) -> Blockwise:
        """With scales that float16 holds."""
        most = torch.finfo(torch.float16).max
        return replace(self, scales=self.scales.clamp(-most, most).half().float())


@dataclass(frozen=True)
class PerChannel:
    """Symmetric int8 with one scale for each row."""

    values: Tensor  # int8 [N, K]
    scales: Tensor  # float32 [N]

    def dequantized(self) -> Tensor:
        return self.values.float().mul_(self.scales[:, None])


def per_channel(weight: Tensor) -> PerChannel:
    """weight `[N, K]` float32."""
    scales = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return PerChannel((weight / scales[:, None]).round_().to(torch.int8), scales)


def per_tensor(weight: Tensor) -> PerChannel:
    """weight `[N, K]` float32; one scale for all rows."""
    scale = (weight.abs().amax() / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return PerChannel((weight / scale).round_().to(torch.int8), scale[None])


def blockwise(
    weight: Tensor,
    bits: int,
    importance: Tensor | None = None,
    *,
    positive: bool = False,
    scales: Tensor | None = None,
) -> Blockwise:
    """A weight in blocks of a row.

    weight: `[N, K]` float32.
    bits: 4 or 8.
    importance: `[K]`, weighs the error of each column: the mean square of what it is multiplied with makes it the error
        of the product.
    positive: 4-bit scales are positive, and have no more digits than both bfloat16 and float16 (as XNNPACK takes them).
    scales: `[N, blocks]`, of a weight that lies on their 4-bit grid already: nothing is searched.
    """
    if scales is not None:
        return _on_grid(weight, scales, bits)
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

    def pack(start: int) -> tuple[Tensor, Tensor]:
        chunk = weight[start : start + step]
        padded = torch.nn.functional.pad(chunk, (0, blocks * BLOCK - columns)).view(-1, blocks, BLOCK)
        return _four_bits(padded, weigh, positive) if bits == 4 else _eight_bits(padded)

    starts = range(0, rows, step)
    for start, found in zip(starts, each(pack, starts), strict=True):
        values[start : start + step], scales[start : start + step] = found
    return Blockwise(values, scales, columns, bits)


def _on_grid(weight: Tensor, scales: Tensor, bits: int) -> Blockwise:
    rows, blocks = scales.shape
    columns = weight.shape[1]
    padded = torch.nn.functional.pad(weight, (0, blocks * BLOCK - columns)).view(rows, blocks, BLOCK)
    levels = _levels(padded, torch.where(scales == 0, 1.0, scales), torch.empty_like(padded))
    return Blockwise(levels.to(torch.int8), scales, columns, bits)


def _eight_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    scales = (x.abs().amax(dim=-1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (x / scales[..., None]).round_().to(torch.int8), scales


def _four_bits(x: Tensor, weigh: Tensor, positive: bool) -> tuple[Tensor, Tensor]:
    """The levels are -8..7, so the largest value of a block goes to -8, whatever its sign; then the scale is fitted by
    weighted least squares, and the best of a few reaches is kept for each block. Where scales are positive a positive
    peak ends at 7. x `[N, blocks, BLOCK]`."""
    peak = x.gather(-1, x.abs().argmax(dim=-1, keepdim=True))[..., 0]
    end = torch.where(peak > 0, 7.0, -8.0) if positive else torch.full_like(peak, -8.0)
    best = torch.full_like(peak, torch.inf)
    chosen, scales = torch.ones_like(peak), torch.ones_like(peak)  # what was divided by, and what is stored
    weighed = x * weigh
    energy = (x * weighed).sum(-1)
    levels, product = torch.empty_like(x), torch.empty_like(x)
    for reach in _REACH:
        scale = peak * reach / end
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        _levels(x, scale, levels)
        across = torch.mul(weighed, levels, out=product).sum(-1)
        along = torch.mul(levels, levels, out=product).mul_(weigh).sum(-1)
        fitted = torch.where(along > 0, across / along.clamp(min=torch.finfo(torch.float32).tiny), scale)
        if positive:
            fitted = _short(fitted)
        error = energy - 2 * across * fitted + along * fitted.square()
        better = error < best
        best = torch.where(better, error, best)
        scales = torch.where(better, fitted, scales)
        chosen = torch.where(better, scale, chosen)
    return _levels(x, chosen, levels).to(torch.int8), scales


def _levels(x: Tensor, scale: Tensor, into: Tensor) -> Tensor:
    return torch.div(x, scale[..., None], out=into).round_().clamp_(-8, 7)


def _short(scales: Tensor) -> Tensor:
    """Normal numbers of float16, with the digits of bfloat16."""
    half = torch.finfo(torch.float16)
    return scales.clamp(half.tiny, half.max).bfloat16().float()
