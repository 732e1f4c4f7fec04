"""The operations of a component as XNNPACK computes them whole, in one piece of the program.

XNNPACK has no norms and cuts no tensor of dynamic length: what it lacks would break the program into pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from exporters.formats.executorch.linears import Pieces
from exporters.models import ops


class Explicit(ops.Ops):
    """Attention written out: torch's own, taken apart, looks for rows that see nothing, which no backend can."""

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, empty: Tensor | None = None) -> Tensor:
        _, s, d = q.shape
        q, k, v = (
            t.view(t.shape[1], heads, d // heads).transpose(0, 1) for t in (q * (d // heads) ** -0.5, k, v)
        )  # [H, S|T, D/H]
        scores = torch.bmm(q, k.transpose(1, 2))
        if empty is not None:
            scores = scores + empty.reshape(1, 1, -1) * ops.UNSEEN
        y = torch.bmm(F.softmax(scores, dim=-1), v)
        return y.transpose(0, 1).reshape(1, s, d)


class Kernels(Explicit):
    def __init__(self, shares: Callable[[int], Tensor], counts: Callable[[int], Tensor] | None = None) -> None:
        self._shares = shares  # width -> f32 [1, width], each 1 / width
        self._counts = counts  # size -> f32 [size], from 0 on

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        centred = x - self._mean(x)
        return centred * torch.rsqrt(self._mean(centred * centred) + eps) * weight + bias

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return x * torch.rsqrt(self._mean(x * x) + eps) * weight

    def head_norms(self, qkv: Any, query: Tensor, key: Tensor, heads: int, kv_heads: int, eps: float) -> Any:
        """Of the halves of heads that `attended` names: the mean over a head is that of its two halves' means."""
        qa, qb, ka, kb, v = qkv.tensors
        made = [self._normed_halves(a, b, w, eps) for a, b, w in ((qa, qb, query), (ka, kb, key))]
        return Pieces([half for pair in made for half in pair] + [v])

    def _normed_halves(self, a: Tensor, b: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """a and b `[1, S, heads * D / 2]`, weight `[D]`."""
        shape, half = a.shape, weight.shape[0] // 2
        a, b = (t.view(1, -1, shape[-1] // half, half) for t in (a, b))
        scale = torch.rsqrt((self._mean(a * a) + self._mean(b * b)) * 0.5 + eps)
        a, b = (t * scale * w for t, w in zip((a, b), weight.chunk(2), strict=True))
        return a.view(1, -1, shape[-1]), b.view(1, -1, shape[-1])

    def activation(self, x: Tensor, kind: str) -> Tensor:
        if kind == "silu":
            return x * torch.sigmoid(x)
        if kind == "gelu_tanh":  # (1 + tanh(u)) / 2 is sigmoid(2 u)
            return x * torch.sigmoid(2 * (2 / math.pi) ** 0.5 * (x + 0.044715 * x * x * x))
        return super().activation(x, kind)

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        """tanh(u) is 2 sigmoid(2 u) - 1."""
        return torch.sigmoid(x * (2 / cap)) * (2 * cap) - cap

    def lookup(self, table: Tensor, at: Tensor, wide: int = 0) -> Tensor:
        assert self._counts is not None
        sizes = (table.shape[1] // wide, wide) if wide else (table.shape[1],)
        return F.linear(ops.one_hot(at, *map(self._counts, sizes)), table)

    def gated(self, gate_up: Tensor, kind: str) -> Tensor:
        gate, up = gate_up.tensors if isinstance(gate_up, Pieces) else gate_up.chunk(2, dim=-1)
        return self.activation(gate, kind) * up

    def _mean(self, x: Tensor) -> Tensor:
        """Of the last axis, which is kept: a product, which XNNPACK has where it has no mean."""
        return F.linear(x, self._shares(x.shape[-1]))
