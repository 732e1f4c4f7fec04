"""A component as the few operations that XNNPACK takes whole: what `lower` sees when it is run on the meta device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporters.models import ops
from exporters.models.decoders import DecoderConfig, LanguageModel
from exporters.quantization import integers


class PlainOps(ops.Ops):
    """Norms and attention written out: TFLite has no operators for them."""

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps) * weight + bias

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight

    def activation(self, x: Tensor, kind: str) -> Tensor:
        return x * torch.sigmoid(x) if kind == "silu" else super().activation(x, kind)

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        """tanh(u) is 2 sigmoid(2 u) - 1."""
        return torch.sigmoid(x * (2 / cap)) * (2 * cap) - cap

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, empty: Tensor | None = None) -> Tensor:
        b, s, d = q.shape
        q = q * (d // heads) ** -0.5
        q, k, v = (t.view(b, t.shape[1], heads, d // heads).transpose(1, 2) for t in (q, k, v))  # [B, H, S|T, D/H]
        scores = q @ k.transpose(-1, -2)
        if empty is not None:
            scores = scores + empty.reshape(b, 1, 1, -1) * ops.UNSEEN
        weights = F.softmax(scores, dim=-1)
        return (weights @ v).transpose(1, 2).reshape(b, s, d)

    def lookup(self, table: Tensor, at: Tensor, wide: int = 0) -> Tensor:
        sizes = (table.shape[1] // wide, wide) if wide else (table.shape[1],)
        counts = [torch.arange(size, dtype=torch.float32, device="meta") for size in sizes]
        return torch.inner(ops.one_hot(at, *counts), table)


class Step(nn.Module):
    """A decoder over as many positions as it is given, `sequence` while it is traced, that follow a cache of `past`.

    Attention is in two parts, over what is remembered and over what is new, under one softmax; only the new keys and
    values are given, and who runs this puts them into the cache. `cos` and `sin` `[1, S, 1, D]` and `mask`
    `[1, 1, G * S, past + S]` (added to the scores; G query heads share a key) say where the positions stand.
    """

    def __init__(self, decoder: LanguageModel, sequence: int, past: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.sequence, self.past = sequence, past

    @property
    def varying(self) -> frozenset[int]:
        """The sizes that follow from the sequence; nothing else of the model may be as large."""
        c, s = self.decoder.config, self.sequence
        return frozenset((s, c.heads // c.kv_heads * s, self.past + s))

    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape, in the order of `forward`."""
        c, s = self.decoder.config, self.sequence
        shapes = ((1, c.kv_heads, self.past, c.head_dim), (1, c.kv_heads, c.head_dim, self.past)) * c.layers
        cache = {f"past_key_values.{slot}": shape for slot, shape in zip(slots(c), shapes, strict=True)}
        return {
            "inputs_embeds": (1, s, c.hidden),
            "cos": (1, s, 1, c.head_dim),
            "sin": (1, s, 1, c.head_dim),
            "mask": (1, 1, c.heads // c.kv_heads * s, self.past + s),
            **(cache if self.past else {}),
        }

    def forward(
        self, inputs_embeds: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, *cache: Tensor
    ) -> tuple[Tensor, ...]:
        """`inputs_embeds` `[1, S, hidden]`; cache: keys `[1, KV, past, D]` and values `[1, KV, D, past]` of each layer.
        The new ones are of the same form, with S for `past`."""
        c, s = self.decoder.config, self.sequence
        kv, group, d = c.kv_heads, c.heads // c.kv_heads, c.head_dim
        new: list[Tensor] = []

        def attend(layer: int, qkv: Tensor, cap: float = 0.0) -> Tensor:
            heads = qkv.view(1, s, c.heads + 2 * kv, d)
            turned = _rotate(heads[:, :, : c.heads + kv], cos, sin, c.rope.width)
            q = turned[:, :, : c.heads].transpose(1, 2) * d**-0.5
            q = q.reshape(1, kv, group * s, d)
            k = turned[:, :, c.heads :].transpose(1, 2)  # [1, KV, S, D]
            v = heads[:, :, c.heads + kv :].permute(0, 2, 3, 1)  # [1, KV, D, S]
            new.extend((k, v))
            y = self._attention(q, k, v, mask, cap, cache[2 * layer : 2 * layer + 2])  # [1, KV, G * S, D]
            return y.reshape(1, c.heads, s, d).transpose(1, 2).reshape(1, s, -1)

        return (self.decoder(inputs_embeds, attend), *new)

    def _attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        cap: float,
        cache: Sequence[Tensor],
    ) -> Tensor:
        scores = q @ k.transpose(-1, -2)
        if not self.past:
            return _shares(scores, mask, cap) @ v.transpose(-1, -2)
        keys, values = cache
        # The right side of a product is packed anew each time: the cache, which is long, stands on the left.
        old = (keys @ q.transpose(-1, -2)).transpose(-1, -2)
        weights = _shares(torch.cat([old, scores], dim=-1), mask, cap)
        before, here = weights[..., : self.past], weights[..., self.past :]
        y = (values @ before.transpose(-1, -2)).transpose(-1, -2)
        return y + here @ v.transpose(-1, -2)


def longest(decoder: LanguageModel, caches: Sequence[int], most: int) -> int:
    """The largest sequence up to `most` from which no size follows that the model has anyway: its own are known by that
    from those that vary."""
    c = decoder.config
    whole = {size for tensor in decoder.state_dict().values() for size in tensor.shape}
    whole |= {*caches, c.head_dim, c.heads, c.kv_heads, c.heads + c.kv_heads, c.heads + 2 * c.kv_heads}
    sizes = whole | {size // 2 for size in whole} | {size // integers.BLOCK for size in whole}
    free = (
        s for s in range(most, 0, -1) if all(sizes.isdisjoint(Step(decoder, s, past).varying) for past in (0, *caches))
    )
    return next(free)


def slots(config: DecoderConfig) -> list[str]:
    return [f"{layer}.{kind}" for layer in range(config.layers) for kind in ("key", "value")]


def _shares(scores: Tensor, mask: Tensor, cap: float) -> Tensor:
    return F.softmax((ops.current().soft_cap(scores, cap) if cap else scores) + mask, dim=-1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, width: int) -> Tensor:
    """x `[1, S, H, D]`, of which `width` features are rotated; sin has its first half negated, and beyond the width
    cos is 1 and sin 0."""
    a, b = x[..., :width].chunk(2, dim=-1)
    swapped = [b, a] if width == x.shape[-1] else [b, a, x[..., width:]]
    return x * cos + torch.cat(swapped, dim=-1) * sin
