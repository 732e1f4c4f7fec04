"""SigLIP's vision transformer over the patches of images that keep their ratio (NaViT, arXiv 2307.06304), as MiniCPM-V
has it. Patches come in a row, each with its place in a square table of positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from edge.errors import CheckpointError
from edge.spec.division import PatchesSpec
from exporters.models import ops, vit
from exporters.models.folding import Fold, Folding
from exporters.models.layers import LayerNorm, Linear
from exporters.models.source import Flatten, Source, Transpose
from exporters.models.vision import siglip

KIND = "navit"
MODEL_TYPES: tuple[str, ...] = ()  # no config names it: what uses it knows that it is this one
CLASS_TOKEN = False
MARKS = r"vpm\.embeddings\.position_embedding"
PROCESSOR = ""  # of a kind of its own
PUBLISHED = None
DEFAULTS = siglip.DEFAULTS
GGUF_NAMES = None  # llama.cpp has it with this family's resampler only
PLACES = 5  # numbers of a patch behind its pixels: row and column in the table, its own, and whether it is none
RATIO = 16  # times as long as it is wide, that a view may be: no more fits a part of fixed size well


@dataclass(frozen=True)
class TowerConfig:
    patches: PatchesSpec
    view_size: int  # of a square with as many pixels as a view
    hidden: int
    layers: int
    heads: int
    ffn: int
    eps: float
    activation: str
    cls: bool = False

    @property
    def image_size(self) -> int:
        return self.view_size

    @property
    def patch_size(self) -> int:
        return self.patches.side

    @property
    def view_shape(self) -> tuple[int, ...]:
        return (1, 1, self.patches.most, self.patches.width)

    @property
    def grid(self) -> int:
        """Of a square view."""
        return self.view_size // self.patches.side

    @property
    def run_layers(self) -> int:
        return self.layers

    @property
    def positions(self) -> int:
        return self.patches.most

    @property
    def tokens(self) -> int:
        return self.patches.most


def from_config(
    config: Mapping[str, Any],
    *,
    select_layer: int | None = None,
    select_feature: str = "patch",
    view_size: int = 0,
    drop_last: bool = False,
) -> TowerConfig:
    """From a SigLIP config whose `image_size` is that of the table of positions.

    view_size: pixels of a square with as many as a view; 0, and a layer or feature, as LLaVA's code asks every encoder
        for one, are refused.
    drop_last: without the last layer.

    Raises CheckpointError that names the field.
    """
    if select_layer is not None or select_feature != "patch" or not view_size:
        raise CheckpointError(
            "the vision encoder reads patches of views of any ratio, which MiniCPM-V's layout alone prepares",
            hint="vision_tower_type siglip, if its images are squares",
        )
    told = vit.told(config, DEFAULTS, siglip.MODEL_TYPES, siglip.ACTIVATIONS)
    side, table = told["patch_size"], told["image_size"] // told["patch_size"]
    longest = max(1, round(RATIO**0.5 * view_size / side))
    patches = PatchesSpec(side, longest, 1, table)
    patches = replace(patches, most=patches.needed(view_size))
    if faults := patches.faults(view_size):
        raise CheckpointError(
            f"a view of {view_size} pixels a side {faults[0]}",
            hint="scale_resolution 448 and patch_size 14, as published",
        )
    return TowerConfig(
        patches=patches,
        view_size=view_size,
        hidden=told["hidden_size"],
        layers=told["num_hidden_layers"] - drop_last,
        heads=told["num_attention_heads"],
        ffn=told["intermediate_size"],
        eps=told["layer_norm_eps"],
        activation=siglip.ACTIVATIONS[told["hidden_act"]],
    )


class Embeddings(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.table = config.patches.table
        self.patch_embedding = Linear(3 * config.patches.side**2, config.hidden)
        self.position_embedding = nn.Parameter(torch.zeros(config.hidden, self.table**2))

    def forward(self, patches: Tensor, places: Tensor) -> Tensor:
        """patches `[B, N, 3 * side²]`, places `[B, N, 2]`"""
        found = self.patch_embedding(patches)
        return cast("Tensor", found + ops.current().lookup(self.position_embedding, places, self.table))


class Tower(nn.Module):
    """patches `[B, 1, N, 3 * side² + 5]` -> `[B, N, hidden + 3]` float32: the last hidden state, normalised, and behind
    it each patch's own row and column, and 1 where it is none."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = vit.layers(config)
        self.post_layernorm = LayerNorm(config.hidden, eps=config.eps)

    def forward(self, patches: Tensor) -> Tensor:
        count, width = self.config.patches.most, self.config.patches.width
        rows = patches.reshape(patches.shape[0], count, width)
        pixels, table = rows[:, :, : width - PLACES], rows[:, :, width - PLACES : width - PLACES + 2]
        own, empty = rows[:, :, width - PLACES + 2 :], rows[:, :, width - 1 :].reshape(-1, count)
        x = self.post_layernorm(vit.through(self.layers, self.embeddings(pixels, table), empty))
        return torch.cat([x, own], dim=2)

    def folding(self) -> Folding:
        found = replace(vit.folding(self.layers), gives=Fold("post_layernorm", (), shifts=True))
        return replace(found, unfolded={**found.unfolded, "embeddings.patch_embedding": "it reads pixels"})


def keys(config: TowerConfig, prefix: str) -> dict[str, Source]:
    """Each parameter's key in a checkpoint whose tower lies under `prefix`."""
    with torch.device("meta"):
        found = vit.keys(Tower(config).state_dict(), prefix)
    embedding, table = "embeddings.patch_embedding.weight", "embeddings.position_embedding"
    found[embedding] = Source((f"{prefix}{embedding}",), Flatten())
    found[table] = Source((f"{prefix}{table}.weight",), Transpose())
    return found


def ignored(config: TowerConfig) -> str:
    """A pattern of the names below the prefix that are never computed with."""
    return rf"head\..*|embeddings\.position_ids|encoder\.layers\.{config.layers}\..*"


def tiny() -> Tower:
    torch.manual_seed(0)
    seen = {"image_size": 70, "patch_size": 14, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Tower(from_config({**seen, "intermediate_size": 64}, view_size=56))
