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
        "sigmoid": torch.sigmoid,
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

    def head_norms(self, qkv: Tensor, query: Tensor, key: Tensor, heads: int, kv_heads: int, eps: float) -> Tensor:
        """qkv `[B, S, (heads + 2 kv_heads) * D]`, queries first, as `attend` takes it. RMS norm of each head of queries
        and keys over its D features, with the weights `[D]` query and key."""
        parts = qkv.view(*qkv.shape[:2], heads + 2 * kv_heads, query.shape[0])
        q, k, v = parts[:, :, :heads], parts[:, :, heads : heads + kv_heads], parts[:, :, heads + kv_heads :]
        normed = torch.cat([self.rms_norm(q, query, eps), self.rms_norm(k, key, eps), v], dim=2)
        return normed.reshape(qkv.shape)

    def activation(self, x: Tensor, kind: str) -> Tensor:
        """One of ACTIVATIONS, elementwise on any shape. Raises EdgeError on another."""
        if kind not in ACTIVATIONS:
            raise EdgeError(f"no activation {kind!r}", hint="one of: " + ", ".join(ACTIVATIONS))
        return ACTIVATIONS[kind](x)

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        """cap * tanh(x / cap), elementwise on any shape; cap above 0."""
        return torch.tanh(x / cap) * cap

    def gated(self, gate_up: Tensor, kind: str) -> Tensor:
        """`[B, S, 2F]` -> `[B, S, F]`: activation(first half) * second half."""
        gate, up = gate_up.chunk(2, dim=-1)
        return self.activation(gate, kind) * up

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, empty: Tensor | None = None) -> Tensor:
        """Every query sees every key. q `[B, S, D]`, k and v `[B, T, D]` -> `[B, S, D]`; T may be S or not. empty
        `[B, T]`: 1 where a key is not seen after all, 0 elsewhere."""
        b, s, d = q.shape
        q, k, v = (t.view(b, t.shape[1], heads, d // heads).transpose(1, 2) for t in (q, k, v))  # [B, H, S|T, D/H]
        mask = None if empty is None else empty.reshape(b, 1, 1, -1) * UNSEEN
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(b, s, d)

    def lookup(self, table: Tensor, at: Tensor, wide: int = 0) -> Tensor:
        """Columns of a table that is a weight, `[D, R]`, which `at` `[B, N, 1]` numbers from 0 to 2048, or with `wide`
        `[B, N, 2]` by row and column of R / wide rows, -> `[B, N, D]`."""
        index = at.long()
        return F.embedding(index[..., 0] * wide + index[..., 1] if wide else index[..., 0], table.T)

    def deformable_attention(self, values: Tensor, distances: Tensor, scores: Tensor, heads: int) -> Tensor:
        """Each query sees points between the rows of a square grid, and of each the mean of its four neighbours,
        weighted by how near they are; zeros lie around the grid (arXiv 2010.04159, section 4.1, of one level).

        values: `[B, G*G, D]`, row-major.
        distances: `[B, Q, 2 * P, G]`: of each of a query's P = heads * points points, a head's behind each other, how
            far it lies to the right of each column, and then, of all, below each row.
        scores: `[B, Q, P]`, one softmax for each head.
        Gives `[B, Q, D]`.
        """
        b, q, count = scores.shape
        grid, points = distances.shape[3], count // heads
        far = self.activation(distances, "relu") + self.activation(distances * -1, "relu")
        near = self.activation(far * -1 + 1, "relu")
        across, down = (t.reshape(b * q, heads, points, grid) for t in (near[:, :, :count], near[:, :, count:]))
        shares = F.softmax(scores.reshape(b * q, heads, points, 1).transpose(2, 3), dim=-1).transpose(2, 3)
        weights = torch.matmul((down * shares).transpose(2, 3), across)  # [B*Q, heads, G, G]
        weights = weights.reshape(b, q, heads, grid * grid).transpose(1, 2)
        values = values.reshape(b, grid * grid, heads, -1).transpose(1, 2)
        return torch.matmul(weights, values).transpose(1, 2).reshape(b, q, -1)

    def conv2d(self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, groups: int) -> Tensor:
        """x `[B, in, H, W]`, weight `[out, in / groups, h, w]`, zeros as padding -> `[B, out, H', W']`."""
        return F.conv2d(x, weight, bias, stride, padding, 1, groups)

    def pool(self, x: Tensor, size: int) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, size, size]`: means over windows that cover the whole image, as torch's adaptive
        average pooling lays them."""
        return x.mean(dim=(2, 3), keepdim=True) if size == 1 else F.adaptive_avg_pool2d(x, size)


def one_hot(at: Tensor, *counts: Tensor) -> Tensor:
    """What a table is multiplied with to look it up, for formats whose kernels gather nothing: at `[B, N, K]`, and of
    each of K numbers 0, 1, .. as float32 `[R]` -> `[B, N, R1 * .. * RK]`."""
    far = [at[:, :, place : place + 1] + count * -1 for place, count in enumerate(counts)]
    near = [current().activation(one * one * -1 + 1, "relu") for one in far]
    if len(near) == 1:
        return near[0]
    (b, n, rows), columns = near[0].shape, near[1].shape[2]
    return (near[0].reshape(b, n, rows, 1) * near[1].reshape(b, n, 1, columns)).reshape(b, n, rows * columns)


UNSEEN = -1e4  # added to the score of a key that is not seen: its share is 0, in half precision too

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
