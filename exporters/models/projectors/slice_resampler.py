"""Learned queries that read patches by one cross-attention, whose keys have sines and cosines of each patch's row and
column added (MiniCPM-V's resampler, arXiv 2408.01800, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from edge.errors import CheckpointError
from exporters.models import ops
from exporters.models.folding import SHARED, Fold, Folding
from exporters.models.layers import LayerNorm, Linear
from exporters.models.projectors import ProjectorConfig, count, need_grid
from exporters.models.source import Sines, Source, Split, Transform, Transpose, sines

KIND = "minicpmv"
SETTINGS = {"query_num": 64}
HEAD_DIM, EPS = 128, 1e-6
PLACES = 3  # behind what the encoder gives of a patch: its row, its column, and whether it is none


@dataclass(frozen=True)
class Config(ProjectorConfig):
    queries: int = 64
    head_dim: int = HEAD_DIM
    longest: int = 0  # patches along an edge, where they come in a row with their places; 0: they are a square


def from_config(shape: ProjectorConfig, told: Mapping[str, Any], *, longest: int = 0) -> Config:
    """`query_num`. Raises CheckpointError that names the field."""
    need_grid(shape, KIND)
    if shape.hidden % HEAD_DIM:
        raise CheckpointError(
            f"the decoder is {shape.hidden} wide, and the resampler's heads {HEAD_DIM}",
            hint=f"a multiple of {HEAD_DIM}",
        )
    return Config(**asdict(shape), queries=count(told, "query_num"), longest=longest)


class Attention(nn.Module):
    """Queries `[B, Q, D]` see what they are led to by `keys` of what `rows` holds, each `[B, N, D]`."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(hidden, hidden) for _ in range(4))

    def forward(self, queries: Tensor, keys: Tensor, rows: Tensor, empty: Tensor | None) -> Tensor:
        q, k, v = self.q_proj(queries), self.k_proj(keys), self.v_proj(rows)
        return cast("Tensor", self.out_proj(ops.current().attention(q, k, v, self.heads, empty)))


class Projector(nn.Module):
    """`[B, N, inputs]`, or `[B, N, inputs + 3]` with places, -> `[B, queries, hidden]` float32. Of a shape alone it has
    64 queries."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.config = own = _own(config)
        hidden = own.hidden
        self.query = nn.Parameter(torch.zeros(own.queries, hidden))
        self.kv_proj = Linear(own.inputs, hidden, bias=False) if own.inputs != hidden else nn.Identity()
        self.ln_q, self.ln_kv, self.ln_post = (LayerNorm(hidden, eps=EPS) for _ in range(3))
        self.attn = Attention(hidden, hidden // own.head_dim)
        self.positions = nn.Parameter(_positions(own).to(self.query.device))
        self.proj = Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inputs, empty = self.config.inputs, None
        if self.config.longest:
            row, column = x[:, :, inputs : inputs + 1], x[:, :, inputs + 1 : inputs + 2]
            x, empty = x[:, :, :inputs], x[:, :, inputs + 2 :].reshape(x.shape[0], -1)
            look = ops.current().lookup
            places = torch.cat([look(self.positions, column), look(self.positions, row)], dim=2)
        else:
            places = self.positions
        rows = self.ln_kv(self.kv_proj(x))
        queries = self.ln_q(self.query.expand(x.shape[0], -1, -1))
        return cast("Tensor", self.proj(self.ln_post(self.attn(queries, rows + places, rows, empty))))

    def folding(self) -> Folding:
        folds = (
            Fold("ln_q", ("attn.q_proj",), shifts=True),
            Fold("attn.v_proj", ("attn.out_proj",), shifts=True),
            Fold("ln_post", ("proj",)),
        )
        own = isinstance(self.kv_proj, Linear)
        unfolded = {"attn.k_proj": SHARED, "attn.v_proj": SHARED}
        return Folding(folds, unfolded, reads=("kv_proj",) if own else ())


def keys(config: ProjectorConfig, prefix: str) -> dict[str, Source]:
    """Each parameter's tensor in a checkpoint of MiniCPM-V whose resampler lies under `prefix`."""
    with torch.device("meta"):
        names = Projector(config).state_dict()
    found = {name: Source((f"{prefix}{name}",)) for name in names}
    for index, kind in enumerate("qkv"):
        part: Transform = Split(index * config.hidden, config.hidden)
        for what in ("weight", "bias"):
            found[f"attn.{kind}_proj.{what}"] = Source((f"{prefix}attn.in_proj_{what}",), part)
    found["proj.weight"] = Source((f"{prefix}proj",), Transpose())
    found["positions"] = Source((f"{prefix}query",), Sines(_own(config).longest))
    return found


def _positions(config: Config) -> Tensor:
    """Of patches with places `[hidden / 2, longest]`, which are those of columns and of rows; of a square of patches
    `[1, N, hidden]`, their sum: the column's numbers before the row's."""
    if config.longest:
        return Sines(config.longest)(torch.zeros(config.hidden, device="cpu"))
    line, count = sines(config.grid, config.hidden // 2).float(), torch.arange(config.grid, device="cpu")
    row, column = (index.flatten() for index in torch.meshgrid(count, count, indexing="ij"))
    return torch.cat([line[column], line[row]], dim=1)[None]


def _own(config: ProjectorConfig) -> Config:
    return config if isinstance(config, Config) else Config(**asdict(config))


def tokens(config: ProjectorConfig) -> int:
    return _own(config).queries


def tiny() -> Projector:
    torch.manual_seed(0)
    projector = Projector(Config(inputs=32, hidden=64, grid=4, queries=9, head_dim=32))
    nn.init.normal_(projector.query)
    return projector
