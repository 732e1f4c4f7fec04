"""The operations of a component as XNNPACK computes them whole, in one piece of the program.

XNNPACK has no norms and cuts no tensor of dynamic length: what it lacks would break the program into pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from exporters.formats.executorch.linears import Pieces
from exporters.models import ops


class Explicit(ops.Ops):
    """Attention without a mask: torch's own, taken apart, looks for rows that see nothing, which no backend can."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        _, s, d = q.shape
        q, k, v = (
            t.view(t.shape[1], heads, d // heads).transpose(0, 1) for t in (q * (d // heads) ** -0.5, k, v)
        )  # [H, S|T, D/H]
        y = torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1), v)
        return y.transpose(0, 1).reshape(1, s, d)


class Kernels(Explicit):
    def __init__(self, shares: Callable[[int], Tensor]) -> None:
        self._shares = shares  # width -> f32 [1, width], each 1 / width

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        centred = x - self._mean(x)
        return centred * torch.rsqrt(self._mean(centred * centred) + eps) * weight + bias

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return x * torch.rsqrt(self._mean(x * x) + eps) * weight

    def activation(self, x: Tensor, kind: str) -> Tensor:
        if kind == "silu":
            return x * torch.sigmoid(x)
        if kind == "gelu_tanh":  # (1 + tanh(u)) / 2 is sigmoid(2 u)
            return x * torch.sigmoid(2 * (2 / math.pi) ** 0.5 * (x + 0.044715 * x * x * x))
        return super().activation(x, kind)

    def gated(self, gate_up: Tensor, kind: str) -> Tensor:
        gate, up = gate_up.tensors if isinstance(gate_up, Pieces) else gate_up.chunk(2, dim=-1)
        return self.activation(gate, kind) * up

    def _mean(self, x: Tensor) -> Tensor:
        """Of the last axis, which is kept: a product, which XNNPACK has where it has no mean."""
        return F.linear(x, self._shares(x.shape[-1]))
