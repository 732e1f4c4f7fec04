"""Products with weights as a program stores them, spelled in the operators that XNNPACK recognises.

Where weights are integers, what they are multiplied with is rounded to int8 too, with a scale and a zero for each row
("per token"), when it is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.ao.quantization.fx._decomposed import quantized_decomposed_lib
from torch.nn import functional as F

from edge.errors import EdgeError
from exporters.quantization import embedding_table, integers

_EIGHT, _FOUR = (-128, 127), (-8, 7)


class Pieces:
    """A matmul whose output is split by rows, for callers that would slice it (XNNPACK cannot slice a dynamic axis)."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)


class Stored(nn.Module):
    """A weight as it is stored: `values` float32 or int8 [N, K], `scales` f32 [N] or, of 4 bits, [N, K / BLOCK]."""

    values: Tensor
    scales: Tensor | None
    bias: Tensor | None

    def __init__(self, values: Tensor, scales: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", None if scales is None else torch.zeros(scales.shape, dtype=torch.int64))
        self.register_buffer("bias", bias)

    def only(self, rows: Tensor) -> Stored:
        scales, bias = (None if t is None else t[rows] for t in (self.scales, self.bias))
        return Stored(self.values[rows], scales, bias)

    def weight(self) -> Tensor:
        """f32 [N, K], for tracing. In a program it is never made: XNNPACK multiplies with the integers."""
        if self.scales is None:
            return self.values
        if self.scales.ndim == 1:
            return _ops().dequantize_per_channel(self.values, self.scales, self.zeros, 0, *_EIGHT, torch.int8)
        return _ops().dequantize_per_channel_group(
            self.values, self.scales, self.zeros, *_FOUR, torch.int8, integers.BLOCK, torch.float32
        )

    def dequantized(self) -> Tensor:
        """The same numbers."""
        if self.scales is None:
            return self.values
        blocks = self.values.float().view(*self.scales.shape, -1)
        return blocks.mul_(self.scales[..., None]).view(self.values.shape)


class Product(nn.Module):
    """`[..., K]` -> `[..., N]`, or Pieces, each with some of the rows of the weight."""

    def __init__(self, stored: Stored, rows: Sequence[Tensor]) -> None:
        """`rows` of each piece; none: one piece with all."""
        super().__init__()
        self.rows = tuple(rows) or (torch.arange(len(stored.values)),)
        self.pieces = nn.ModuleList([stored.only(r) for r in rows] or [stored])

    def forward(self, x: Tensor) -> Any:
        pieces = cast("Sequence[Stored]", self.pieces)
        rounded = x if pieces[0].scales is None else _per_token(x)  # once for all
        made = [F.linear(rounded, piece.weight(), piece.bias) for piece in pieces]
        return Pieces(made) if len(made) > 1 else made[0]

    def dequantized(self) -> Tensor:
        """f32 [N, K], of all pieces."""
        pieces = cast("Sequence[Stored]", self.pieces)
        if len(pieces) == 1:
            return pieces[0].dequantized()
        whole = torch.empty(sum(map(len, self.rows)), pieces[0].values.shape[1])
        for rows, piece in zip(self.rows, pieces, strict=True):
            whole[rows] = piece.dequantized()
        return whole


class Storage(NamedTuple):
    """How a scheme stores the weights of products, and the embedding table."""

    bits: int  # of a weight: 32, float32; 8, integers with a scale for each row; 4, with one for each block of it
    table: embedding_table.Kind


STORAGE = {
    "fp32": Storage(32, "fp32"),
    "w8a8": Storage(8, "int8"),
    "w8": Storage(8, "int8"),
    "8da4w": Storage(4, "int8"),
}


def store(
    name: str,
    weight: Tensor,
    bias: Tensor | None,
    scheme: str,
    importance: Tensor | None,
    scales: Tensor | None = None,
) -> Stored:
    """A weight f32 [N, K] in the scheme; scales [N, K / BLOCK] where it is rounded already. Raises EdgeError where its
    shape does not fit it."""
    bits = STORAGE[scheme].bits
    if bits == 32:
        return Stored(weight, None, bias)
    if bits == 8:
        rows = integers.per_channel(weight)
        return Stored(rows.values, rows.scales, bias)
    if weight.shape[1] % integers.BLOCK:
        raise EdgeError(
            f"{name} is {weight.shape[1]} wide, and 4-bit blocks of an ExecuTorch program are {integers.BLOCK}",
            hint="--scheme decoder=w8",
        )
    # XNNPACK keeps such scales exactly.
    blocks = integers.blockwise(weight, 4, importance, positive=True, scales=scales)
    return Stored(blocks.values.flatten(1), blocks.scales, bias)


def _per_token(x: Tensor) -> Tensor:
    scales, zeros = _ops().choose_qparams_per_token_asymmetric(x, torch.int8)
    rounded = _ops().quantize_per_token(x, scales, zeros, *_EIGHT, torch.int8)
    return cast("Tensor", _ops().dequantize_per_token(rounded, scales, zeros, *_EIGHT, torch.int8, torch.float32))


def _ops() -> Any:
    """The module that registers them is imported above."""
    return getattr(torch.ops, quantized_decomposed_lib.ns)
