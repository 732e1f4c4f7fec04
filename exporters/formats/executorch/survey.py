"""What a component does with its products and norms: found by running it once on the meta device."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exporters.formats.executorch.methods import attended
from exporters.models import ops
from exporters.models.decoders import LanguageModel
from exporters.models.encoder import Encoder


@dataclass(frozen=True)
class Survey:
    rows: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)  # weight -> rows of each piece that is taken
    widths: set[int] = field(default_factory=set)  # over which a norm takes a mean
    tables: set[int] = field(default_factory=set)  # how many rows, and columns, a table has that is looked up
    caps: set[float] = field(default_factory=set)  # soft caps of attention


class _Watch(ops.Ops):
    def __init__(self, names: dict[int, str]) -> None:
        self._names, self._found = names, Survey()
        self._products: list[tuple[Tensor, str]] = []  # kept, so that an identity stays one's own
        self._taken: list[tuple[str, tuple[Tensor, ...]]] = []

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        made = super().linear(x, weight, bias)
        self._products.append((made, self._names[id(weight)]))
        return made

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        self._found.widths.add(x.shape[-1])
        return super().layer_norm(x, weight, bias, eps)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        self._found.widths.add(x.shape[-1])
        return super().rms_norm(x, weight, eps)

    def head_norms(self, qkv: Tensor, query: Tensor, key: Tensor, heads: int, kv_heads: int, eps: float) -> Tensor:
        self._found.widths.add(query.shape[0] // 2)
        self.taken(qkv, attended(heads, kv_heads, query.shape[0], query.shape[0]))
        return ops.Ops().head_norms(qkv, query, key, heads, kv_heads, eps)

    def lookup(self, table: Tensor, at: Tensor, wide: int = 0) -> Tensor:
        self._found.tables.update((table.shape[1] // wide, wide) if wide else (table.shape[1],))
        return super().lookup(table, at, wide)

    def gated(self, gate_up: Tensor, kind: str) -> Tensor:
        self.taken(gate_up, torch.arange(gate_up.shape[-1]).chunk(2))
        return super().gated(gate_up, kind)

    def taken(self, product: Tensor, rows: tuple[Tensor, ...]) -> None:
        name = next((name for made, name in self._products if made is product), None)
        if name is not None:
            self._taken.append((name, rows))

    def capped(self, cap: float) -> None:
        self._found.caps.update({cap} - {0.0})

    def finish(self) -> Survey:
        """A weight is stored in pieces where each of its products is taken so."""
        made, taken = Counter(name for _, name in self._products), Counter(name for name, _ in self._taken)
        self._found.rows.update((name, rows) for name, rows in self._taken if taken[name] == made[name])
        return self._found


def survey(skeleton: Encoder | LanguageModel) -> Survey:
    """`skeleton` lies on the meta device."""
    watch = _Watch({id(parameter): name for name, parameter in skeleton.named_parameters()})
    with torch.device("cpu"), ops.using(watch), torch.no_grad():
        if isinstance(skeleton, Encoder):
            skeleton(torch.empty(*skeleton.view_shape, device="meta"))
            return watch.finish()
        config = skeleton.config

        def attend(layer: int, qkv: Tensor, cap: float = 0.0) -> Tensor:
            watch.capped(cap)
            watch.taken(qkv, attended(config.heads, config.kv_heads, config.head_dim, config.rope.width))
            return torch.empty(1, 1, config.heads * config.head_dim, device="meta")

        skeleton(torch.empty(1, 1, config.hidden, device="meta"), attend)
    return watch.finish()
