"""Causal attention with memory: what a decoder needs besides its own layers, and the reference for every format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from edge.errors import CheckpointError
from exporters.models import ops


@dataclass(frozen=True)
class Rope:
    """Rotary positions (arXiv 2104.09864), in the half-rotated layout of Llama checkpoints. The first `rotary_dim`
    features of each head are rotated, 0: all of them; the others pass as they are."""

    head_dim: int
    theta: float
    scaling: Mapping[str, Any] | None = None
    rotary_dim: int = 0

    @property
    def width(self) -> int:
        """Features of a head that are rotated."""
        return self.rotary_dim or self.head_dim

    def inv_freq(self) -> Tensor:
        """`[width / 2]` float32."""
        freq = 1.0 / self.theta ** (torch.arange(0, self.width, 2, dtype=torch.float32) / self.width)
        kind = (self.scaling or {}).get("rope_type", (self.scaling or {}).get("type", "default"))
        if kind == "default":
            return freq
        assert self.scaling is not None
        if kind == "linear":
            return freq / self.scaling["factor"]
        if kind == "llama3":  # as in the Llama 3.1 release: long waves are stretched, short ones kept
            low, high = self.scaling["low_freq_factor"], self.scaling["high_freq_factor"]
            original = self.scaling["original_max_position_embeddings"]
            blend = ((original * freq / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
            return blend * freq + (1 - blend) * freq / self.scaling["factor"]
        if kind == "factors":  # as GGUF has it
            return freq / torch.tensor(self.scaling["factors"])
        raise CheckpointError(f"rope_scaling {kind!r} is not supported", hint="one of: default, linear, llama3")

    def tables(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin, each `[length, width / 2]` float32."""
        angles = torch.outer(torch.arange(length, dtype=torch.float32), self.inv_freq())
        return angles.cos(), angles.sin()


class Attend(Protocol):
    """What a decoder calls in each layer; it rotates, remembers and attends."""

    def __call__(self, layer: int, qkv: Tensor, cap: float = 0.0) -> Tensor:
        """qkv `[B, S, (heads + 2 kv_heads) * head_dim]`, queries first -> `[B, S, heads * head_dim]`.

        cap: scores become cap * tanh(score / cap) before they are masked (arXiv 2408.00118, section 2); 0: they stay.
        """
        ...


class GrowingCache:
    """The reference: plain torch, keys and values of all positions so far, one entry a layer."""

    def __init__(self, heads: int, kv_heads: int, rope: Rope) -> None:
        self.heads, self.kv_heads, self.rope = heads, kv_heads, rope
        self.keys: dict[int, Tensor] = {}  # layer -> [B, KV, T, D]
        self.values: dict[int, Tensor] = {}

    @property
    def position(self) -> int:
        """How many positions it holds."""
        return next(iter(self.keys.values())).shape[2] if self.keys else 0

    def rewind(self, position: int) -> None:
        self.keys = {layer: kept[:, :, :position] for layer, kept in self.keys.items()}
        self.values = {layer: kept[:, :, :position] for layer, kept in self.values.items()}

    def __call__(self, layer: int, qkv: Tensor, cap: float = 0.0) -> Tensor:
        b, s, _ = qkv.shape
        qkv = qkv.view(b, s, self.heads + 2 * self.kv_heads, self.rope.head_dim).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)  # [B, H, S, D]
        past = self.keys[layer].shape[2] if layer in self.keys else 0
        cos, sin = (t[past:] for t in self.rope.tables(past + s))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if past:
            k, v = torch.cat([self.keys[layer], k], dim=2), torch.cat([self.values[layer], v], dim=2)
        self.keys[layer], self.values[layer] = k, v
        mask = torch.ones(s, past + s, dtype=torch.bool).tril(past)
        if cap:
            y = _capped(q, k, v, mask, cap)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=self.heads != self.kv_heads)
        return y.transpose(1, 2).reshape(b, s, -1)


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, cap: float) -> Tensor:
    """q `[B, H, S, D]`, k and v `[B, KV, T, D]`, mask bool `[S, T]` -> `[B, H, S, D]`."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    scores = ops.Ops().soft_cap(q @ k.mT * q.shape[-1] ** -0.5, cap)
    return scores.masked_fill(~mask, -math.inf).softmax(dim=-1) @ v


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x `[B, H, S, D]`, cos and sin `[S, R/2]`: the first R features of each head are rotated."""
    half = cos.shape[-1]
    a, b, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)
