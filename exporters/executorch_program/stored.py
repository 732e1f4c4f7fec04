"""Products with the weights as a program stores them, in the operators that XNNPACK recognises.

Activations are rounded to int8 with a scale and a zero for each row ("per token"), when they are multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # registers the operators
from torch.nn import functional as F

from edge.errors import EdgeError
from exporters import quantize

OPS: Any = torch.ops.quantized_decomposed
assert _decomposed is not None


class Pieces:
    """What a product gives whose rows are wanted apart: XNNPACK cuts no tensor of dynamic length."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)


class StoredLinear(nn.Module):
    """`[..., K]` -> `[..., N]`, or Pieces of it. `rows` are the rows of each piece; None: all of them at once."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: Sequence[Tensor] | None) -> None:
        super().__init__()
        self.split = rows is not None
        parts = [slice(None)] if rows is None else list(rows)
        self.pieces = nn.ModuleList(self._piece(weight[part], None if bias is None else bias[part]) for part in parts)

    def forward(self, x: Tensor) -> Any:
        rounded = self._rounded(x)
        made = [piece(rounded) for piece in self.pieces]
        return Pieces(made) if self.split else made[0]

    def _piece(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        return _Float(weight, bias)

    def _rounded(self, x: Tensor) -> Tensor:
        return x


class EightBits(StoredLinear):
    """int8 weights with a scale for each row."""

    def _piece(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        return _PerRow(weight, bias)

    def _rounded(self, x: Tensor) -> Tensor:
        return _per_token(x)


class FourBits(StoredLinear):
    """int4 weights with a scale for each BLOCK of a row."""
