"""Queries that see a few points of the image each, the D-Abstractor of Honeybee (`d-abs`; arXiv 2312.06742, section
3.2): decoder layers of Deformable DETR (arXiv 2010.04159) on one feature map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from edge.errors import CheckpointError
from exporters.models import ops
from exporters.models.folding import ACTIVATION, SHARED, Fold, Folding
from exporters.models.layers import Activation, LayerNorm, Linear
from exporters.models.projectors import ProjectorConfig, need_grid, section, side
from exporters.models.source import Permute, Shape, Transform

KIND = "d-abs"
USUAL: Mapping[str, Any] = {
    "projector_type": KIND,
    "d_model": 1024,
    "decoder_layers": 6,
    "decoder_attention_heads": 16,
    "decoder_n_points": 4,
    "decoder_ffn_dim": 1024,
    "activation_function": "relu",
    "num_feature_levels": 1,
    "num_queries": 144,
    "num_eos_tokens": 0,
    "pos_emb": True,
    "pooled_v_target": "query",
    "except_cls": True,
}
SETTINGS = {"projector_config": {"d_model": 1024, "decoder_layers": 6, "num_queries": 144, "pooled_v_target": "query"}}
POOLED = ("query", "tgt", "none")  # what the pooled image is: where queries stand, what they are, or neither
ACTIVATIONS = ("relu", "gelu", "silu")


@dataclass(frozen=True)
class Config(ProjectorConfig):
    width: int = 1024
    layers: int = 6
    heads: int = 16
    points: int = 4
    inner: int = 1024
    activation: str = "relu"
    queries: int = 144
    ends: int = 0  # learned embeddings behind those of an image
    positions: bool = True
    pooled: str = "query"

    @property
    def seen(self) -> int:
        """Points that a query sees."""
        return self.heads * self.points


def from_config(shape: ProjectorConfig, told: Mapping[str, Any]) -> Config:
    """`projector_config`, by Honeybee's names. Raises CheckpointError that names the field."""
    need_grid(replace(shape, cls=False), KIND)
    found = section(told, shape, USUAL)
    legal = {"pooled_v_target": POOLED, "activation_function": ACTIVATIONS, "num_feature_levels": (1,)}
    for name, values in legal.items():
        if found[name] not in values:
            raise CheckpointError(
                f"config.json has {name} {found[name]!r} in projector_config, which is not supported",
                hint="one of: " + ", ".join(map(str, values)),
            )
    if found["except_cls"] is not True:
        raise CheckpointError(f"{KIND} has no place on the grid for the class token (except_cls false)", hint="true")
    if not found["decoder_attention_heads"] or found["d_model"] % found["decoder_attention_heads"]:
        raise CheckpointError(
            f"config.json has decoder_attention_heads {found['decoder_attention_heads']}, and d_model "
            f"{found['d_model']}",
            hint="a number of heads that divides it",
        )
    side(found["num_queries"], "num_queries")
    return Config(
        **asdict(shape),
        width=found["d_model"],
        layers=found["decoder_layers"],
        heads=found["decoder_attention_heads"],
        points=found["decoder_n_points"],
        inner=found["decoder_ffn_dim"],
        activation=found["activation_function"],
        queries=found["num_queries"],
        ends=found["num_eos_tokens"],
        positions=found["pos_emb"],
        pooled=found["pooled_v_target"],
    )


@dataclass(frozen=True)
class Distances:
    """Points (x, y) `[1, Q, 2]`, whose square is 1 wide -> how far each lies to the right of each column, and below
    each row, of a grid: `[1, 2 * Q, 1, grid]`, in patches."""

    grid: int

    def shape(self, shape: Shape) -> Shape:
        if len(shape) != 3 or shape[0] != 1 or shape[2] != 2:
            raise ValueError("reference points are [1, queries, 2]")
        return (1, 2 * shape[1], 1, self.grid)

    def largest(self, value: float) -> float:
        return (value + 1) * self.grid

    def __call__(self, tensor: Tensor) -> Tensor:
        centres = torch.arange(self.grid, dtype=tensor.dtype) + 0.5
        return tensor.reshape(1, -1, 1, 1) * self.grid - centres


def transforms(config: ProjectorConfig) -> dict[str, Transform]:
    """A checkpoint keeps each point's x and y beside each other: here all x come first."""
    c = _own(config)
    found: dict[str, Transform] = {"reference_points": Distances(c.grid)}
    order = Permute((*range(0, 2 * c.seen, 2), *range(1, 2 * c.seen, 2)))
    for index in range(c.layers):
        found |= {f"layers.{index}.encoder_attn.sampling_offsets.{kind}": order for kind in ("weight", "bias")}
    return found


class SelfAttention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        d, self.heads = config.width, config.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = Linear(d, d), Linear(d, d), Linear(d, d), Linear(d, d)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        """x and places `[B, Q, D]`"""
        placed = x + places
        y = ops.current().attention(self.q_proj(placed), self.k_proj(placed), self.v_proj(x), self.heads)
        return cast("Tensor", self.out_proj(y))


class DeformableAttention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        d, self.heads, self.seen, self.grid = config.width, config.heads, config.seen, config.grid
        self.sampling_offsets = Linear(d, 2 * config.seen)
        self.attention_weights = Linear(d, config.seen)
        self.value_proj, self.output_proj = Linear(d, d), Linear(d, d)

    def forward(self, x: Tensor, references: Tensor, rows: Tensor) -> Tensor:
        """x `[B, Q, D]`, references `[1, 2Q, 1, G]`, rows `[B, G*G, D]`"""
        offsets = self.sampling_offsets(x).reshape(x.shape[0], -1, self.seen, 1)  # [B, 2Q, P, 1]
        distances = (offsets + references).reshape(x.shape[0], -1, 2 * self.seen, self.grid)
        scores = self.attention_weights(x)
        y = ops.current().deformable_attention(self.value_proj(rows), distances, scores, self.heads)
        return cast("Tensor", self.output_proj(y))


class Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        c = config
        self.self_attn, self.self_attn_layer_norm = SelfAttention(c), LayerNorm(c.width)
        self.encoder_attn, self.encoder_attn_layer_norm = DeformableAttention(c), LayerNorm(c.width)
        self.fc1, self.activation, self.fc2 = (
            Linear(c.width, c.inner),
            Activation(c.activation),
            Linear(c.inner, c.width),
        )
        self.final_layer_norm = LayerNorm(c.width)

    def forward(self, x: Tensor, places: Tensor, references: Tensor, rows: Tensor) -> Tensor:
        x, _ = self.self_attn_layer_norm.add(x, self.self_attn(x, places))
        x, _ = self.encoder_attn_layer_norm.add(x, self.encoder_attn(x + places, references, rows))
        x, _ = self.final_layer_norm.add(x, self.fc2(self.activation(self.fc1(x))))
        return x


class Projector(nn.Module):
    """`[B, N, inputs]` -> `[B, queries + ends, hidden]` float32. Of a shape alone it has 144 queries and six layers."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.config = c = _own(config)
        self.grid = c.grid
        self.input_proj = nn.ModuleList([Linear(c.inputs, c.width) if c.inputs != c.width else nn.Identity()])
        self.v_pos_emb = nn.Parameter(torch.zeros(1, c.grid**2, c.width)) if c.positions else None
        table = nn.Parameter(torch.zeros(c.queries, c.width * (2 if c.pooled == "none" else 1)))
        self.query_position_embeddings = nn.ParameterDict({"weight": table})
        self.reference_points = nn.Parameter(Distances(c.grid)(_regular(c)))
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.eos_tokens = nn.Parameter(torch.zeros(1, c.ends, c.width)) if c.ends else None
        self.output_proj = Linear(c.width, c.hidden) if c.hidden != c.width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        rows = self.input_proj[0](x[:, 1:] if self.config.cls else x)  # [B, G*G, D]
        rows = rows if self.v_pos_emb is None else rows + self.v_pos_emb
        x, places = self._queries(rows)
        for layer in self.layers:
            x = layer(x, places, self.reference_points, rows)
        if self.eos_tokens is not None:
            x = torch.cat([x, self.eos_tokens.expand(x.shape[0], -1, -1)], dim=1)
        return cast("Tensor", self.output_proj(x))

    def _queries(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What the queries are, and where they stand, each `[B, Q, D]`."""
        c, learned = self.config, self.query_position_embeddings["weight"].expand(rows.shape[0], -1, -1)
        if c.pooled == "none":
            return learned[:, :, c.width :], learned[:, :, : c.width]
        square = rows.transpose(1, 2).reshape(rows.shape[0], -1, self.grid, self.grid)
        pooled = ops.current().pool(square, side(c.queries, "num_queries")).flatten(2).transpose(1, 2)
        return (learned, pooled) if c.pooled == "query" else (pooled, learned)

    def folding(self) -> Folding:
        folds: list[Fold] = []
        unfolded: dict[str, str] = {}
        for at in (f"layers.{index}" for index in range(self.config.layers)):
            for own, value, out in (("self_attn", "v_proj", "out_proj"), ("encoder_attn", "value_proj", "output_proj")):
                folds.append(Fold(f"{at}.{own}.{value}", (f"{at}.{own}.{out}",)))
            see = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "fc1"]
            see += [f"encoder_attn.{name}" for name in ("sampling_offsets", "attention_weights", "value_proj")]
            unfolded |= {f"{at}.{name}": SHARED for name in see} | {f"{at}.fc2": ACTIVATION}
        projected = isinstance(self.input_proj[0], Linear)
        unfolded |= {"output_proj": SHARED} if isinstance(self.output_proj, Linear) else {}
        return Folding(tuple(folds), unfolded, reads=("input_proj.0",) if projected and not self.config.cls else ())


def _regular(config: Config) -> Tensor:
    """Points `[1, Q, 2]` in rows and columns between the middles of the outermost patches, where training begins."""
    half = 0.5 / config.grid
    line = torch.linspace(half, 1 - half, side(config.queries, "num_queries"))
    down, across = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([across.flatten(), down.flatten()], dim=1)[None]


def _own(config: ProjectorConfig) -> Config:
    return config if isinstance(config, Config) else from_config(config, {})


def tokens(config: ProjectorConfig) -> int:
    own = _own(config)
    return own.queries + own.ends


def tiny() -> Projector:
    torch.manual_seed(0)
    own = Config(inputs=32, hidden=64, grid=4, width=48, layers=1, heads=4, points=2, inner=96, queries=9, ends=1)
    projector = Projector(own)
    nn.init.normal_(projector.query_position_embeddings["weight"])
    return projector
