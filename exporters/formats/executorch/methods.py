"""The methods of a program, under the names and with the inputs that ExecuTorch's own multimodal runner asks for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import torch
from executorch.extension.llm.custom_ops.custom_ops import custom_ops_lib
from torch import Tensor, nn
from torch.nn import functional as F

from edge.errors import EdgeError
from exporters.formats.executorch.linears import Pieces
from exporters.formats.executorch.ops import Explicit, Kernels
from exporters.models import ops
from exporters.models.attention import Attend
from exporters.models.decoders import LanguageModel

_MASKED = 1e9  # taken off a score of a later position


class VisionEncoder(nn.Module):
    """pixel values f32 [1, 3, H, W], or what else the encoder takes -> rows f32 [1, N, D]."""

    def __init__(self, encoder: nn.Module, widths: set[int] | None, tables: Collection[int] = ()) -> None:
        """`widths` of its norms, and how long its `tables` are, for XNNPACK; None: another backend has norms."""
        super().__init__()
        self.encoder = encoder
        self.shares = None if widths is None else Shares(widths)
        self.counts = Counts(tables)

    def forward(self, pixel_values: Tensor) -> Tensor:
        with ops.using(Explicit() if self.shares is None else Kernels(self.shares, self.counts)):
            return cast("Tensor", self.encoder(pixel_values))


class TokenEmbedding(nn.Module):
    """ids i64 [1, S] -> rows f32 [1, S, hidden]. `scales` f32 [vocab, blocks]: the table is int8."""

    table: Tensor
    scales: Tensor | None

    def __init__(self, table: Tensor, scales: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("table", table)
        self.register_buffer("scales", scales)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.scales is None:
            return F.embedding(tokens, self.table)
        found = torch.ops.quantized_decomposed.embedding_byte(self.table, self.scales, None, -128, 127, tokens)
        return cast("Tensor", found)


class TextDecoder(nn.Module):
    """rows f32 [1, S, hidden], the first one's position i64 [1] -> logits f32 [1, 1, vocab] of the last row. Keys and
    values of all positions before it are its buffers."""

    def __init__(self, decoder: LanguageModel, widths: set[int], capped: bool) -> None:
        """capped: attention's scores have a soft cap in some layers."""
        super().__init__()
        c = decoder.config
        self.decoder = decoder
        self.shares = Shares(widths)
        self.context, self.heads, self.kv_heads, self.head_dim = c.context, c.heads, c.kv_heads, c.head_dim
        for name, table in zip(("cos", "sin"), c.rope.tables(c.context), strict=True):
            self.register_buffer(name, table)  # [T, D/2]
        if capped:
            self.register_buffer("positions", torch.arange(float(c.context)))
        for layer in range(c.layers):
            for kind in ("keys", "values"):
                self.register_buffer(f"{kind}_{layer}", torch.zeros(1, c.context, c.kv_heads, c.head_dim))

    def forward(self, inputs_embeds: Tensor, input_pos: Tensor) -> Tensor:
        position, length = cast("int", input_pos[0].item()), inputs_embeds.shape[1]
        torch._check(position >= 0)
        torch._check(position < self.context)
        torch._check(position + length <= self.context)
        tables = (self.get_buffer("cos"), self.get_buffer("sin"))
        cos, sin = (table.narrow(0, position, length)[None, :, None] for table in tables)  # [1, S, 1, D/2]

        def attend(layer: int, qkv: Any, cap: float = 0.0) -> Tensor:
            turned = self._turned(qkv, cos, sin)
            if not cap:
                return self._attend(layer, position, *turned)
            return self._capped(layer, position, self.get_buffer("positions").narrow(0, position, length), cap, *turned)

        with ops.using(Kernels(self.shares)):
            return cast("Tensor", self.decoder(inputs_embeds, cast("Attend", attend)))

    def _turned(self, qkv: Any, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [1, S, H, D], k and v [1, S, KV, D]; as `exporters.models.attention.rotate` turns them."""
        if not isinstance(qkv, Pieces):
            raise EdgeError(
                "ExecuTorch: there is no rule for attend of what is no product itself, which the model uses",
                hint="another --format, and report this",
            )
        *qk, v = qkv.tensors
        each = len(qk) // 2  # two halves, and what is not rotated where there is such
        queries = [t.view(1, -1, self.heads, t.shape[-1] // self.heads) for t in qk[:each]]
        keys = [t.view(1, -1, self.kv_heads, t.shape[-1] // self.kv_heads) for t in qk[each:]]
        q, k = (torch.cat([a * cos - b * sin, b * cos + a * sin, *rest], dim=-1) for a, b, *rest in (queries, keys))
        return q, k, v.view(1, -1, self.kv_heads, self.head_dim)

    def _attend(self, layer: int, position: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self._updated(layer, position, k, v)
        y: Tensor = _kernels().custom_sdpa(q, keys, values, position, None, 0, True)
        return y.view(1, -1, self.heads * self.head_dim)

    def _updated(self, layer: int, position: Any, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the whole cache, f32 [1, T, KV, D], with the new ones."""
        keys, values = self.get_buffer(f"keys_{layer}"), self.get_buffer(f"values_{layer}")
        _kernels().update_cache(k, keys, position)
        _kernels().update_cache(v, values, position)
        return keys, values

    def _capped(
        self,
        layer: int,
        position: Any,
        here: Tensor,
        cap: float,
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> Tensor:
        """Attention written out, over as many positions as the cache can hold: the kernel knows no soft cap, and
        XNNPACK cuts no axis at a length that is told. here: the positions of the rows, f32 [S]."""
        kv, group, d = self.kv_heads, self.heads // self.kv_heads, self.head_dim
        keys, values = self._updated(layer, position, k, v)
        q = (q * d**-0.5).view(-1, kv, group, d).permute(1, 0, 2, 3)  # [KV, S, G, D]: G heads share a key
        scores = torch.bmm(_copied(q).view(kv, -1, d), keys[0].permute(1, 2, 0)).view(kv, -1, group, self.context)
        ahead = (here[:, None, None] - self.get_buffer("positions")).clamp(-1, 0)  # [S, 1, T]: -1 where a key is later
        shares = F.softmax(ops.current().soft_cap(scores, cap) + ahead * _MASKED, dim=-1)
        y = torch.bmm(shares.view(kv, -1, self.context), values[0].transpose(0, 1)).view(kv, -1, group, d)
        return _copied(y.permute(1, 0, 2, 3)).view(1, -1, kv * group * d)


class Shares(nn.Module):
    """What makes a mean of a product."""

    def __init__(self, widths: set[int]) -> None:
        super().__init__()
        for width in sorted(widths):
            self.register_buffer(f"of_{width}", torch.full((1, width), 1 / width))

    def forward(self, width: int) -> Tensor:
        return self.get_buffer(f"of_{width}")


class Counts(nn.Module):
    """What makes a product of looking a table up."""

    def __init__(self, sizes: Collection[int]) -> None:
        super().__init__()
        for size in sorted(sizes):
            self.register_buffer(f"to_{size}", torch.arange(size, dtype=torch.float32))

    def forward(self, size: int) -> Tensor:
        return self.get_buffer(f"to_{size}")


def _copied(x: Tensor) -> Tensor:
    """In the order of its axes, whatever their lengths: a reshape would ask for them."""
    return x.clone(memory_format=torch.contiguous_format)


def _kernels() -> Any:
    """Its module is imported above, which registers them."""
    return getattr(torch.ops, custom_ops_lib.ns)


def attended(heads: int, kv_heads: int, head_dim: int, rotated: int) -> tuple[Tensor, ...]:
    """Which rows of the product that `attend` takes make its pieces: first and second halves of each head of the
    queries, with what of a head is not rotated where there is such, the same of the keys, and the values."""
    d, h, kv, half = head_dim, heads, kv_heads, rotated // 2
    q, k, v = torch.arange((h + 2 * kv) * d).split([h * d, kv * d, kv * d])
    cuts = [half, half, d - 2 * half] if d > 2 * half else [half, half]
    pieces = [piece.flatten() for t in (q, k) for piece in t.view(-1, d).split(cuts, dim=1)]
    return (*pieces, v)
