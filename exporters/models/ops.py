"""The operations that components are made of, and the seam where a format puts its own in their place.

A component calls these functions only; a format that has fused kernels traces it under `using(...)`, and so a new
language-model family or vision tower needs no code in any format.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn import functional as F


class Ops:
    """The reference: plain torch. Shapes: x `[B, S, D]`, weight `[out, in]`."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def add_layer_norm(
        self, x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(norm(x + delta), x + delta)"""
        total = x + delta
        return self.layer_norm(total, weight, bias, eps), total

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, eps)

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(norm(x + delta), x + delta)"""
        total = x + delta
        return self.rms_norm(total, weight, eps), total

    def head_norms(self, qkv: Tensor, query: Tensor, key: Tensor, heads: int, kv_heads: int, eps: float) -> Tensor:
        """qkv `[B, S, (heads + 2 kv_heads) * D]`, queries first, as `attend` takes it. RMS norm of each head of queries
        and keys over its D features, with the weights `[D]` query and key."""
        parts = qkv.view(*qkv.shape[:2], heads + 2 * kv_heads, query.shape[0])
        q, k, v = parts[:, :, :heads], parts[:, :, heads : heads + kv_heads], parts[:, :, heads + kv_heads :]
        normed = torch.cat([self.rms_norm(q, query, eps), self.rms_norm(k, key, eps), v], dim=2)
        return normed.reshape(qkv.shape)

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def quick_gelu(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """`[B, S, 2F]` -> `[B, S, F]`: silu(first half) * second half."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """Every position sees every other; q, k, v and the result `[B, S, D]`."""
        b, s, d = q.shape
        q, k, v = (t.view(b, s, heads, d // heads).transpose(1, 2) for t in (q, k, v))  # [B, H, S, D/H]
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, d)


_current: ContextVar[Ops] = ContextVar("ops", default=Ops())  # noqa: B039 - Ops has no state


def current() -> Ops:
    return _current.get()


@contextmanager
def using(ops: Ops) -> Iterator[None]:
    token = _current.set(ops)
    try:
        yield
    finally:
        _current.reset(token)
