"""The closed list of operations that components are made of, and the seam where a format puts its own in their place.

A component computes with these functions, with `+` and `*`, and with what only moves numbers (`view`, `reshape`,
`flatten`, `transpose`, `permute`, `expand`, `torch.cat` of two to five, slices of one axis); a decoder leaves positions
and its KV cache to `exporters.models.attention.Attend`. Every format implements every operation or refuses it by name,
which `tests/export/test_ops_contract.py` holds: so a new decoder family, vision encoder or projector needs no code in
any format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from edge.errors import EdgeError


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "gelu": F.gelu,  # x Φ(x), with the error function
        "gelu_tanh": _gelu_tanh,
        "quick_gelu": _quick_gelu,
        "silu": F.silu,
        "relu": F.relu,
        "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid,
    }
)


class Ops:
    """The reference: plain torch. x is `[B, S, D]` float32 unless told otherwise; a format may count on B = 1."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """weight `[out, in]`"""
        return F.linear(x, weight, bias)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Over the last axis."""
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def add_layer_norm(
        self, x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """(norm(x + delta), x + delta)"""
        total = x + delta
        return self.layer_norm(total, weight, bias, eps), total

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Over the last axis."""
        return F.rms_norm(x, weight.shape, weight, eps)

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(norm(x + delta), x + delta)"""
        total = x + delta
        return self.rms_norm(total, weight, eps), total

    def activation(self, x: Tensor, kind: str) -> Tensor:
        """One of ACTIVATIONS, elementwise on any shape. Raises EdgeError on another."""
        if kind not in ACTIVATIONS:
            raise EdgeError(f"no activation {kind!r}", hint="one of: " + ", ".join(ACTIVATIONS))
        return ACTIVATIONS[kind](x)

    def gated(self, gate_up: Tensor, kind: str) -> Tensor:
        """`[B, S, 2F]` -> `[B, S, F]`: activation(first half) * second half."""
        gate, up = gate_up.chunk(2, dim=-1)
        return self.activation(gate, kind) * up

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """Every query sees every key. q `[B, S, D]`, k and v `[B, T, D]` -> `[B, S, D]`; T may be S or not."""
        b, s, d = q.shape
        q, k, v = (t.view(b, t.shape[1], heads, d // heads).transpose(1, 2) for t in (q, k, v))  # [B, H, S|T, D/H]
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, d)

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int) -> Tensor:
        """x `[B, in, H, W]`, weight `[out, in / groups, h, w]`, zeros as padding -> `[B, out, H', W']`."""
        return F.conv2d(x, weight, bias, stride, padding, 1, groups)

    def pool(self, x: Tensor, size: int) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, size, size]`: means over windows that cover the whole image, as torch's adaptive
        average pooling lays them."""
        return x.mean(dim=(2, 3), keepdim=True) if size == 1 else F.adaptive_avg_pool2d(x, size)


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
