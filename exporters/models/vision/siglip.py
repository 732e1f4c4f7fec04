"""SigLIP's vision transformer (arXiv 2303.15343): no class token, a biased patch convolution, tanh-GELU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from edge.errors import CheckpointError
from exporters.models import vit
from exporters.models.folding import Fold, Folding
from exporters.models.layers import Conv2d, LayerNorm
from exporters.models.source import Source

KIND = "siglip"
MODEL_TYPES = ("siglip_vision_model", "siglip")
CLASS_TOKEN = False
MARKS = r"embeddings\.patch_embedding|encoder\.layers\.\d+|post_layernorm|head\.probe"
PROCESSOR = "SiglipImageProcessor"
PUBLISHED = None  # every one of them has a config
# transformers' names -> ours
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "quick_gelu": "quick_gelu"}
DEFAULTS: dict[str, Any] = {  # transformers' SiglipVisionConfig; save_pretrained leaves out what is as here
    "model_type": "siglip_vision_model",
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu_pytorch_tanh",
}
GGUF_NAMES = None  # llama.cpp pads an image to a square, and SigLIP's own processor stretches it


@dataclass(frozen=True)
class TowerConfig:
    image_size: int
    patch_size: int
    hidden: int
    layers: int  # in the checkpoint; `run_layers` of them are computed
    heads: int
    ffn: int
    eps: float = 1e-6
    activation: str = "gelu_tanh"
    select_layer: int | None = -2  # of the hidden states, as in CLIP; None: the last one, normalised
    cls: bool = False  # there is no class token
    skipped: int = 0  # patches that are left out at the beginning

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def run_layers(self) -> int:
        if self.select_layer is None:
            return self.layers
        return self.select_layer if self.select_layer >= 0 else self.layers + 1 + self.select_layer

    @property
    def positions(self) -> int:
        return self.grid**2

    @property
    def tokens(self) -> int:
        return self.grid**2 - self.skipped


def from_config(
    config: Mapping[str, Any], *, select_layer: int | None = -2, select_feature: str = "patch"
) -> TowerConfig:
    """From the `vision_config` of a SigLIP checkpoint; what it leaves out is as in transformers' SiglipVisionConfig.

    `select_layer` None takes what the encoder gives by itself, `last_hidden_state`; `select_feature` may be
    "patch_but_first", where code took the first patch for a class token. Raises CheckpointError that names the field.
    """
    if select_feature not in ("patch", "patch_but_first"):
        raise CheckpointError(
            f"mm_vision_select_feature is {select_feature!r}, and SigLIP has no class token", hint="it must be 'patch'"
        )
    told = vit.told(config, DEFAULTS, MODEL_TYPES, ACTIVATIONS)
    return TowerConfig(
        image_size=told["image_size"],
        patch_size=told["patch_size"],
        hidden=told["hidden_size"],
        layers=told["num_hidden_layers"],
        heads=told["num_attention_heads"],
        ffn=told["intermediate_size"],
        eps=told["layer_norm_eps"],
        activation=ACTIVATIONS[told["hidden_act"]],
        select_layer=select_layer,
        skipped=int(select_feature == "patch_but_first"),
    )


class Embeddings(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.patch_embedding = Conv2d(3, config.hidden, config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Embedding(config.grid**2, config.hidden)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [B, G*G, D]
        return cast("Tensor", patches + self.position_embedding.weight)


class Tower(nn.Module):
    """`pixel_values` `[B, 3, H, W]` -> `[B, tokens, hidden]` float32: the hidden state `select_layer`."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = vit.layers(config)
        self.post_layernorm = LayerNorm(config.hidden, eps=config.eps) if config.select_layer is None else None

    def forward(self, pixels: Tensor) -> Tensor:
        x = vit.through(self.layers, self.embeddings(pixels))
        x = x[:, self.config.skipped :] if self.config.skipped else x
        return x if self.post_layernorm is None else self.post_layernorm(x)

    def folding(self) -> Folding:
        found = vit.folding(self.layers)
        return found if self.post_layernorm is None else replace(found, gives=Fold("post_layernorm", (), shifts=True))


def keys(config: TowerConfig, prefix: str) -> dict[str, Source]:
    """Each parameter's key in a checkpoint whose tower lies under `prefix`."""
    with torch.device("meta"):
        names = Tower(config).state_dict()
    return vit.keys(names, prefix)


def ignored(config: TowerConfig) -> str:
    """A pattern of the names below the prefix that are never computed with: `head` pools for whole images."""
    norm = "" if config.select_layer is None else r"post_layernorm\..*|"
    return rf"{norm}head\..*|embeddings\.position_ids|{vit.unused_layers(config)}"


def tiny() -> Tower:
    torch.manual_seed(0)
    return Tower(TowerConfig(image_size=56, patch_size=14, hidden=32, layers=3, heads=2, ffn=64))
