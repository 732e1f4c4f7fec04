"""GPTQ: a decoder's weights rounded to 4-bit grids one layer after the other, each for the inputs that it will have.

A weight's columns are rounded in turn, those with the largest inputs first, and what a column is off by is made up for
in those to come (arXiv 2210.17323, with activation order). Every sequence runs through the decoder twice side by side:
with the weights as rounded so far, and with the checkpoint's own. A weight is first fitted to give on the former what
its original gives on the latter, so that errors of earlier layers are corrected and not handed on: the asymmetric
calibration of arXiv 2504.02692, solved in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from edge.errors import CheckpointError
from exporters.models import ops
from exporters.models.attention import GrowingCache
from exporters.models.decoders import DecoderConfig, LanguageModel
from exporters.models.layers import Linear
from exporters.quantization import integers

# What a format can keep as a block's scale: any float32, any float16, or only what is positive and has no more digits
# than both bfloat16 and float16.
Grid = Literal["float32", "float16", "positive"]

# Of each input's own energy, so that scaling a channel changes nothing: this, and more where few rows speak for many
# columns, which would be fitted to those rows alone. Measured on the demo with 1 to 32 conversations.
_DAMPING, _OF_FEW = 0.03, 0.15
_LEAST = 1e-4  # of the mean over inputs: an input that calibration hardly lit may be lit by another image
_AT_ONCE = 128  # columns whose errors are handed on together
_ROOM = 1 << 30  # bytes that activations may take at least; else half of what the decoder takes


def round_decoder(
    decoder: LanguageModel,
    sequences: Sequence[Tensor],
    grid: Grid,
    progress: Callable[[float], None],
    left: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Put the decoder's weights on the grid, all but the head's and those that blocks do not divide.

    decoder: float32; changed in place.
    sequences: rows `[1, S, hidden]` float32, as the decoder sees them. As many are used as there is room for, at least
        one.
    left: weight -> bool `[N]`, rows that are stored otherwise: they are fitted to their inputs, and not rounded.

    Returns weight -> the scales of its blocks, `[N, K / BLOCK]` float32, of all weights with a rounded row:
    `integers.blockwise` finds the same integers again. Raises CheckpointError where inputs of a weight are not finite.
    """
    config = decoder.config
    rows, real = _padded(sequences[: _count(decoder, sequences)])
    rounding = _Rounding(decoder, grid, real, progress, left or {})
    with torch.no_grad(), ops.using(rounding):
        decoder(torch.cat([rows, rows]), _NoCache(config.heads, config.kv_heads, config.rope), everywhere=True)
    return rounding.scales


class _NoCache(GrowingCache):
    """Whole sequences come in one call: no layer's keys and values are kept for the next."""

    def __call__(self, layer: int, qkv: Tensor, cap: float = 0.0) -> Tensor:
        attended = super().__call__(layer, qkv, cap)
        self.keys.clear()
        self.values.clear()
        return attended


class _Rounding(ops.Ops):
    """Rounds a weight when it is reached, whose Hessian is let go before the next one's.

    Of a batch, the first half is computed with the weights as rounded, the second with the checkpoint's own.
    """

    def __init__(
        self,
        decoder: LanguageModel,
        grid: Grid,
        real: Tensor,  # bool [B, S]: where rows are no padding
        progress: Callable[[float], None],
        left: Mapping[str, Tensor],
    ) -> None:
        self._names = {
            id(layer.weight): f"{name}.weight"
            for name, layer in decoder.named_modules()
            if isinstance(layer, Linear) and layer is not decoder.lm_head and not layer.in_features % integers.BLOCK
        }
        self._head = decoder.lm_head.weight
        self._grid: Grid = grid
        self._real, self._progress, self._left = real, progress, left
        self.scales: dict[str, Tensor] = {}
        self._done = 0

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if weight is self._head:
            return x  # nobody asks for the logits of all positions, which are as large as the decoder
        if (name := self._names.get(id(weight))) is None:
            return super().linear(x, weight, bias)
        rounded, exact = x.chunk(2)
        stored = self._round(name, *_products(name, rounded[self._real], exact[self._real]), weight)
        made = x.new_empty(*x.shape[:-1], len(weight))
        torch.matmul(rounded, stored.T, out=made[: len(rounded)])
        torch.matmul(exact, weight.T, out=made[len(rounded) :])
        weight.copy_(stored)
        self._done += 1
        self._progress(self._done / len(self._names))
        return made if bias is None else made.add_(bias)

    def _round(self, name: str, hessian: Tensor, drift: Tensor, weight: Tensor) -> Tensor:
        """The weight as stored; for hessian and drift see `_products`."""
        square = hessian.diagonal().clone()
        order = square.argsort(stable=True)
        lower = factor(hessian[order][:, order], int(self._real.sum()))
        fitted, left = follow(weight, drift, lower, order), self._left.get(name)
        if left is not None and bool(left.all()):
            return fitted
        self.scales[name] = scales_on(fitted, self._grid, square)
        stored = propagate(fitted, self.scales[name], lower, order)
        if left is not None:
            stored[left] = fitted[left]
        return stored


def _products(name: str, rounded: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
    """Of a weight's inputs `[R, K]` with themselves, and of what rounding changed of them with what they are now; both
    `[K, K]`. Raises CheckpointError where one is not finite."""
    hessian = rounded.T @ rounded
    drift = exact.sub_(rounded).T @ rounded
    if not bool(hessian.isfinite().all() and drift.isfinite().all()):
        raise CheckpointError(
            f"what the decoder multiplies with {name} is NaN or infinite on the calibration conversations",
            hint="its values outgrow float32: was the training stable? --quantize search hands no errors on",
        )
    return hessian, drift


def scales_on(weight: Tensor, grid: Grid, importance: Tensor) -> Tensor:
    """`[N, K / BLOCK]` as the grid can keep them, by the search that an export without GPTQ makes."""
    found = integers.blockwise(weight, 4, importance, positive=grid == "positive").scales
    half = torch.finfo(torch.float16).max
    return found.clamp(-half, half).half().float() if grid == "float16" else found


def factor(hessian: Tensor, rows: int) -> Tensor:
    """The lower triangle L of the damped Hessian LL', float32 `[K, K]`.

    hessian: `[K, K]` float32, of no particular rank.
    rows: how many inputs it is of.
    """
    square = hessian.diagonal().double()
    width = square.clamp(min=float(square.mean()) * _LEAST or 1.0).sqrt()
    # Of inputs at unit width: correlations, which float64 factors whatever the widths are.
    correlated = hessian.double().div_(width).div_(width[:, None])
    damping = _DAMPING + _OF_FEW * len(hessian) / rows
    while True:
        correlated.diagonal().fill_(1.0 + damping)
        lower, failed = torch.linalg.cholesky_ex(correlated)
        if not failed:
            return lower.mul_(width[:, None]).float()
        damping *= 4  # sums in float32 are no exact squares; from K on any matrix of correlations is positive


def follow(weight: Tensor, drift: Tensor, lower: Tensor, order: Tensor) -> Tensor:
    """What gives on the inputs as they are, by least squares, what `weight` `[N, K]` gives on the exact ones. `lower`
    is the factor of the Hessian with rows and columns in `order`."""
    wide = len(weight) > len(drift)  # then it is less work to solve for the drift alone
    target = drift if wide else weight @ drift
    solved = torch.empty_like(target)
    solved[:, order] = torch.cholesky_solve(target[:, order].T, lower).T
    return weight + (weight @ solved if wide else solved)


def propagate(weight: Tensor, scales: Tensor, lower: Tensor, order: Tensor) -> Tensor:
    """The weight `[N, K]` on the grid of its scales, column by column from the last in `order` to the first.

    What a column is off by is handed on by the unit triangle of LL' = TDT', which says the same as the Hessian's
    inverse in this order (QuIP, arXiv 2307.13304; Babai's nearest plane, arXiv 2507.18553).
    """
    columns = weight.T[order]  # [K, N]: each lies in one piece
    errors = torch.empty_like(columns)
    share = lower / lower.diagonal()
    for end in range(len(columns), 0, -_AT_ONCE):
        start = max(0, end - _AT_ONCE)
        wanted = torch.addmm(columns[start:end], share[end:, start:end].T, errors[end:])
        for i in reversed(range(start, end)):
            scale = scales[:, order[i] // integers.BLOCK]
            stored = (wanted[i - start] / torch.where(scale == 0, 1.0, scale)).round_().clamp_(-8, 7).mul_(scale)
            torch.sub(columns[i], stored, out=errors[i])
            wanted[: i - start].addr_(share[i, start:i], errors[i])
            columns[i] = stored
    found = torch.empty_like(weight)
    found[:, order] = columns.T
    return found


def _padded(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """One batch `[B, S, hidden]`, zeros behind what is shorter, and where rows are no padding, bool `[B, S]`. Causal
    attention lets no row see what comes behind it."""
    longest = max(rows.shape[1] for rows in sequences)
    batch = torch.cat([F.pad(rows, (0, 0, 0, longest - rows.shape[1])) for rows in sequences])
    lengths = torch.tensor([rows.shape[1] for rows in sequences])
    return batch, torch.arange(longest) < lengths[:, None]


def _count(decoder: LanguageModel, sequences: Sequence[Tensor]) -> int:
    """How many of the sequences there is room for, both sides of each."""
    weights = sum(parameter.numel() for parameter in decoder.parameters()) * 4
    longest = max(rows.shape[1] for rows in sequences)
    return max(1, max(_ROOM, weights // 2) // (2 * longest * _width(decoder.config) * 4))


def _width(config: DecoderConfig) -> int:
    """Numbers of a position at the widest place of a layer, between its feed-forward products."""
    return 2 * config.hidden + (4 if config.gated else 2) * config.ffn
