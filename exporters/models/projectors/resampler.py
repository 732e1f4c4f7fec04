"""Learned queries that read the picture by cross-attention (Perceiver Resampler, arXiv 2204.14198, section 3.1), as
TinyLLaVA-Factory trains it (`connector_type: resampler`; arXiv 2405.11788)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from exporters.models import ops
from exporters.models.folding import ACTIVATION, SHARED, Fold, Folding
from exporters.models.layers import Activation, LayerNorm, Linear
from exporters.models.projectors import ProjectorConfig, count

KIND = "resampler"
SETTINGS = {"num_queries": 128, "num_resampler_layers": 3}
HEADS, HEAD_DIM = 8, 64  # of every layer, whatever the width
_TWO = "it reads what two norms give"


@dataclass(frozen=True)
class Config(ProjectorConfig):
    queries: int = 128
    layers: int = 3


def from_config(shape: ProjectorConfig, told: Mapping[str, Any]) -> Config:
    """`num_queries` and `num_resampler_layers`. Raises CheckpointError that names the field."""
    queries, layers = (count(told, name) for name in SETTINGS)
    return Config(**asdict(shape), queries=queries, layers=layers)


class CrossAttention(nn.Module):
    """Queries `[B, Q, D]` see the picture's rows `[B, N, D]`, and each other."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        inner = HEADS * HEAD_DIM
        self.norm_media = LayerNorm(hidden)
        self.norm_latents = LayerNorm(hidden)
        self.to_q = Linear(hidden, inner, bias=False)
        self.to_kv = Linear(hidden, 2 * inner, bias=False)
        self.to_out = Linear(inner, hidden, bias=False)

    def forward(self, rows: Tensor, queries: Tensor) -> Tensor:
        queries = self.norm_latents(queries)
        kv = self.to_kv(torch.cat([self.norm_media(rows), queries], dim=1))  # [B, N + Q, 2 * inner]
        inner = HEADS * HEAD_DIM
        seen = ops.current().attention(self.to_q(queries), kv[:, :, :inner], kv[:, :, inner:], HEADS)
        return cast("Tensor", self.to_out(seen))


def feed_forward(hidden: int) -> nn.Sequential:
    return nn.Sequential(
        LayerNorm(hidden),
        Linear(hidden, 4 * hidden, bias=False),
        Activation("gelu"),
        Linear(4 * hidden, hidden, bias=False),
    )


class Projector(nn.Module):
    """`[B, N, inputs]` -> `[B, queries, hidden]` float32. Of a shape alone it has 128 queries and 3 layers."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        own = config if isinstance(config, Config) else Config(**asdict(config))
        self.config = own
        self.latents = nn.Parameter(torch.zeros(own.queries, own.hidden))
        self.linear = Linear(own.inputs, own.hidden)
        self.layers = nn.ModuleList(
            nn.ModuleList([CrossAttention(own.hidden), feed_forward(own.hidden)]) for _ in range(own.layers)
        )
        self.norm = LayerNorm(own.hidden)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.linear(x)  # [B, N, D]
        queries = self.latents.expand(x.shape[0], -1, -1)  # [B, Q, D]
        for layer in self.layers:
            attend, feed = cast("nn.ModuleList", layer)
            queries = attend(rows, queries) + queries
            queries = feed(queries) + queries
        return cast("Tensor", self.norm(queries))

    def folding(self) -> Folding:
        folds: list[Fold] = []
        unfolded: dict[str, str] = {}
        inner = HEADS * HEAD_DIM
        for index in range(len(self.layers)):
            attend, feed = f"layers.{index}.0", f"layers.{index}.1"
            folds += [
                Fold(f"{attend}.to_kv", (f"{attend}.to_out",), first=inner, count=inner),
                Fold(f"{feed}.0", (f"{feed}.1",)),
            ]
            unfolded |= {f"{attend}.to_q": SHARED, f"{attend}.to_kv": _TWO, f"{feed}.3": ACTIVATION}
        return Folding(tuple(folds), unfolded, reads=("linear",))


def tokens(config: ProjectorConfig) -> int:
    return (config if isinstance(config, Config) else Config(**asdict(config))).queries


def tiny() -> Projector:
    torch.manual_seed(0)
    projector = Projector(Config(inputs=32, hidden=64, grid=4, queries=9, layers=1))
    nn.init.normal_(projector.latents)
    return projector
