"""Learned queries that read the picture in every second layer of a BERT (Q-Former, arXiv 2301.12597, section 3.1), as
TinyLLaVA-Factory trains it (`connector_type: qformer`; arXiv 2405.11788)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from exporters.models import ops
from exporters.models.folding import ACTIVATION, SHARED, Fold, Folding
from exporters.models.layers import LayerNorm, Linear
from exporters.models.projectors import ProjectorConfig, count
from exporters.models.source import Standardise

KIND = "qformer"
SETTINGS = {"num_queries": 128}
EPS = 1e-12


@dataclass(frozen=True)
class Config(ProjectorConfig):
    """The code takes its sizes from google-bert/bert-base-uncased, whatever the checkpoint."""

    queries: int = 128
    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072


def from_config(shape: ProjectorConfig, told: Mapping[str, Any]) -> Config:
    """`num_queries`. Raises CheckpointError that names the field."""
    return Config(**asdict(shape), queries=count(told, "num_queries"))


def transforms(config: ProjectorConfig) -> dict[str, Standardise]:
    """BERT normalises what it embeds: here the queries, which no input changes, and without weights."""
    return {"query_tokens": Standardise(_own(config).width, EPS)}


class Attention(nn.Module):
    """Queries `[B, Q, D]` see `rows` `[B, N, inputs]`; their sum is normalised."""

    def __init__(self, config: Config, inputs: int) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        see = {"query": Linear(width, width), "key": Linear(inputs, width), "value": Linear(inputs, width)}
        self.add_module("self", nn.ModuleDict(see))  # the checkpoint's name, and Python's
        self.output = nn.ModuleDict({"dense": Linear(width, width), "LayerNorm": LayerNorm(width, eps=EPS)})

    def forward(self, queries: Tensor, rows: Tensor) -> Tensor:
        see = cast("nn.ModuleDict", self.get_submodule("self"))
        q, k, v = see["query"](queries), see["key"](rows), see["value"](rows)
        seen = self.output["dense"](ops.current().attention(q, k, v, self.heads))
        normed, _ = cast("LayerNorm", self.output["LayerNorm"]).add(queries, seen)
        return normed


class Layer(nn.Module):
    def __init__(self, config: Config, sees: bool) -> None:
        super().__init__()
        width = config.width
        self.attention = Attention(config, width)
        self.crossattention = Attention(config, config.inputs) if sees else None
        self.intermediate_query = nn.ModuleDict({"dense": Linear(width, config.inner)})
        self.output_query = nn.ModuleDict(
            {"dense": Linear(config.inner, width), "LayerNorm": LayerNorm(width, eps=EPS)}
        )

    def forward(self, queries: Tensor, rows: Tensor) -> Tensor:
        queries = self.attention(queries, queries)
        if self.crossattention is not None:
            queries = self.crossattention(queries, rows)
        inner = ops.current().activation(self.intermediate_query["dense"](queries), "gelu")
        more = self.output_query["dense"](inner)
        normed, _ = cast("LayerNorm", self.output_query["LayerNorm"]).add(queries, more)
        return normed


class Bert(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(config, i % 2 == 0) for i in range(config.layers))})

    def forward(self, queries: Tensor, rows: Tensor) -> Tensor:
        for layer in cast("nn.ModuleList", self.encoder["layer"]):
            queries = layer(queries, rows)
        return queries


class Projector(nn.Module):
    """`[B, N, inputs]` -> `[B, queries, hidden]` float32. Of a shape alone it is BERT base's with 128 queries."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        own = _own(config)
        self.config = own
        self.query_tokens = nn.Parameter(torch.zeros(1, own.queries, own.width))
        self.bert = Bert(own)
        self.projector = Linear(own.width, own.hidden)

    def forward(self, x: Tensor) -> Tensor:
        queries = self.query_tokens.expand(x.shape[0], -1, -1)
        return cast("Tensor", self.projector(self.bert(queries, x)))

    def folding(self) -> Folding:
        folds: list[Fold] = []
        unfolded: dict[str, str] = {}
        reads: list[str] = []
        for index, layer in enumerate(cast("nn.ModuleList", self.bert.encoder["layer"])):
            own = f"bert.encoder.layer.{index}"
            for name in ("attention", "crossattention"):
                if getattr(layer, name) is None:
                    continue
                see = f"{own}.{name}.self"
                folds.append(Fold(f"{see}.value", (f"{own}.{name}.output.dense",), shifts=True))
                unfolded[f"{see}.query"] = SHARED
                if name == "attention":
                    unfolded |= {f"{see}.key": SHARED, f"{see}.value": SHARED}
                else:
                    reads += [f"{see}.key", f"{see}.value"]
            unfolded |= {f"{own}.intermediate_query.dense": SHARED, f"{own}.output_query.dense": ACTIVATION}
        folds.append(Fold(f"{own}.output_query.LayerNorm", ("projector",), shifts=True))
        return Folding(tuple(folds), unfolded, tuple(reads))


def _own(config: ProjectorConfig) -> Config:
    return config if isinstance(config, Config) else Config(**asdict(config))


def tokens(config: ProjectorConfig) -> int:
    return _own(config).queries


def tiny() -> Projector:
    torch.manual_seed(0)
    shape = Config(inputs=32, hidden=64, grid=4, queries=9, width=48, layers=3, heads=4, inner=96)
    projector = Projector(shape)
    nn.init.normal_(projector.query_tokens)
    return projector
