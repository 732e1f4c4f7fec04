"""CLIP's vision transformer (arXiv 2103.00020) as LLaVA-style models use it: up to a chosen layer, without its head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from edge.errors import CheckpointError
from exporters.models import ops
from exporters.models.layers import Activation, Conv2d, LayerNorm, Linear

KIND = "clip"
ACTIVATIONS = ("quick_gelu", "gelu")
DEFAULTS: dict[str, Any] = {  # transformers' CLIPVisionConfig; save_pretrained leaves out what is as here
    "model_type": "clip_vision_model",
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-5,
    "hidden_act": "quick_gelu",
}


@dataclass(frozen=True)
class TowerConfig:
    image_size: int
    patch_size: int
    hidden: int
    layers: int  # in the checkpoint; `run_layers` of them are computed
    heads: int
    ffn: int
    eps: float = 1e-5
    activation: str = "quick_gelu"
    select_layer: int = -2  # of the hidden states: 0 is the embedding, -1 the last layer's output
    select_feature: str = "patch"  # or "cls_patch"

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def run_layers(self) -> int:
        return self.select_layer if self.select_layer >= 0 else self.layers + 1 + self.select_layer

    @property
    def positions(self) -> int:
        """That attention sees: the patches and the class token."""
        return self.grid**2 + 1

    @property
    def tokens(self) -> int:
        return self.grid**2 + (self.select_feature == "cls_patch")


def from_config(config: Mapping[str, Any], *, select_layer: int = -2, select_feature: str = "patch") -> TowerConfig:
    """From the `vision_config` of a CLIP checkpoint; what it leaves out is as in transformers' CLIPVisionConfig.

    Raises CheckpointError that names the field.
    """
    told = {**DEFAULTS, **config}
    if told["model_type"] not in ("clip_vision_model", "clip"):
        raise CheckpointError(f"the vision encoder is a {told['model_type']!r}", hint="one of: clip_vision_model, clip")
    if told["hidden_act"] not in ACTIVATIONS:
        raise CheckpointError(
            f"the vision encoder's hidden_act is {told['hidden_act']!r}", hint="one of: " + ", ".join(ACTIVATIONS)
        )
    for name, default in DEFAULTS.items():
        kinds = (int,) if isinstance(default, int) else (int, float)
        if not isinstance(default, str) and not (type(told[name]) in kinds and 0 < told[name] < math.inf):
            raise CheckpointError(f"the vision encoder's {name} is {told[name]!r}", hint="it must be a positive number")
    if told["num_channels"] != 3:
        raise CheckpointError(f"the vision encoder's num_channels is {told['num_channels']}", hint="3, for RGB images")
    found = TowerConfig(
        image_size=told["image_size"],
        patch_size=told["patch_size"],
        hidden=told["hidden_size"],
        layers=told["num_hidden_layers"],
        heads=told["num_attention_heads"],
        ffn=told["intermediate_size"],
        eps=told["layer_norm_eps"],
        activation=told["hidden_act"],
        select_layer=select_layer,
        select_feature=select_feature,
    )
    if found.hidden % found.heads or not found.grid:
        raise CheckpointError(
            f"the vision encoder cannot be built: {found}",
            hint="hidden_size must be a multiple of num_attention_heads, image_size at least patch_size",
        )
    return found


class Embeddings(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(config.hidden))
        self.patch_embedding = Conv2d(3, config.hidden, config.patch_size, stride=config.patch_size, bias=False)
        self.position_embedding = nn.Embedding(config.positions, config.hidden)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [B, G*G, D]
        cls = self.class_embedding.expand(pixels.shape[0], 1, -1)
        return torch.cat([cls, patches], dim=1) + self.position_embedding.weight  # [B, 1 + G*G, D]


class Attention(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        d = config.hidden
        self.heads = config.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = Linear(d, d), Linear(d, d), Linear(d, d), Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        y = ops.current().attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads)
        return self.out_proj(y)


class MLP(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden, config.ffn)
        self.fc2 = Linear(config.ffn, config.hidden)
        self.activation = Activation(config.activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.hidden, eps=config.eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = LayerNorm(config.hidden, eps=config.eps)
        self.mlp = MLP(config)


class Tower(nn.Module):
    """`pixel_values` `[B, 3, H, W]` -> `[B, tokens, hidden]` float32: the hidden state `select_layer`."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = LayerNorm(config.hidden, eps=config.eps)  # CLIP's own spelling
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.run_layers))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.pre_layrnorm(self.embeddings(pixels))
        delta: Tensor | None = None
        for layer in cast("list[Layer]", self.layers):
            normed, x = (layer.layer_norm1(x), x) if delta is None else layer.layer_norm1.add(x, delta)
            normed, x = layer.layer_norm2.add(x, layer.self_attn(normed))
            delta = layer.mlp(normed)
        if delta is not None:
            x = x + delta
        return x if self.config.select_feature == "cls_patch" else x[:, 1:]


def keys(config: TowerConfig, prefix: str) -> dict[str, tuple[str, ...]]:
    """Each parameter's key in a checkpoint whose tower lies under `prefix` (ends with "vision_model.")."""
    with torch.device("meta"):
        names = Tower(config).state_dict()
    return {name: (f"{prefix}encoder.{name}" if name.startswith("layers.") else prefix + name,) for name in names}


def tiny() -> Tower:
    torch.manual_seed(0)
    return Tower(TowerConfig(image_size=56, patch_size=14, hidden=32, layers=3, heads=2, ffn=64))
