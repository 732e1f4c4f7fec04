"""CLIP's vision transformer (arXiv 2103.00020) as LLaVA-style models use it: up to a chosen layer, without its head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edge.errors import CheckpointError
from exporters.models import vit
from exporters.models.folding import Fold, Folding
from exporters.models.layers import Conv2d, LayerNorm
from exporters.models.source import Source

if TYPE_CHECKING:
    from exporters.sources.weights import Weights

KIND = "clip"
MODEL_TYPES = ("clip_vision_model", "clip")
CLASS_TOKEN = True
MARKS = r"embeddings\.(?:class|patch)_embedding|pre_layrnorm|encoder\.layers\.\d+"
PROCESSOR = "CLIPImageProcessor"
# The towers that OpenAI published: 64 wide heads, quick-GELU. Of others nothing is known without their config.
PUBLISHED = r"clip-vit-(base|large)-patch\d+"
PUBLISHED_HEAD = 64
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
# Our names -> llama.cpp's, below "v."; a family that it does not compute has None.
GGUF_NAMES = (
    (r"embeddings\.class_embedding", "class_embd"),
    (r"embeddings\.patch_embedding", "patch_embd"),
    (r"embeddings\.position_embedding", "position_embd"),
    (r"pre_layrnorm", "pre_ln"),
    (r"layers\.(\d+)\.layer_norm([12])", r"blk.\1.ln\2"),
    (r"layers\.(\d+)\.self_attn\.([qkv])_proj", r"blk.\1.attn_\2"),
    (r"layers\.(\d+)\.self_attn\.out_proj", r"blk.\1.attn_out"),
    (r"layers\.(\d+)\.mlp\.fc1", r"blk.\1.ffn_up"),
    (r"layers\.(\d+)\.mlp\.fc2", r"blk.\1.ffn_down"),
)


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
    def cls(self) -> bool:
        return self.select_feature == "cls_patch"

    @property
    def tokens(self) -> int:
        return self.grid**2 + self.cls


def from_config(config: Mapping[str, Any], *, select_layer: int = -2, select_feature: str = "patch") -> TowerConfig:
    """From the `vision_config` of a CLIP checkpoint; what it leaves out is as in transformers' CLIPVisionConfig.

    Raises CheckpointError that names the field.
    """
    told = vit.told(config, DEFAULTS, MODEL_TYPES, ACTIVATIONS)
    return TowerConfig(
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


def completed(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Heads that a config leaves out are 12, as transformers has it. Where they cannot be, a published tower's are."""
    hidden = fields.get("hidden_size")
    if "num_attention_heads" in fields or type(hidden) is not int or hidden % 12 == 0:
        return fields
    return {**fields, "num_attention_heads": max(1, hidden // PUBLISHED_HEAD)}


def published(weights: Weights, prefix: str) -> dict[str, int]:
    """The config of a published tower, by its weights' shapes. Raises CheckpointError where they are no tower's."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if prefix + name not in weights:
            raise CheckpointError(f"missing: {prefix + name}", hint="is the vision tower complete?")
        if len(found := weights.shape(prefix + name)) != rank:
            raise CheckpointError(f"wrong shape: {prefix + name} {list(found)}", hint="is it a CLIP vision tower?")
        return found

    hidden, _, patch, _ = shape("embeddings.patch_embedding.weight", 4)
    positions, _ = shape("embeddings.position_embedding.weight", 2)
    ffn, _ = shape("encoder.layers.0.mlp.fc1.weight", 2)
    layer = re.compile(re.escape(prefix) + r"encoder\.layers\.(\d+)\..*")
    return {
        "image_size": round((positions - 1) ** 0.5) * patch,
        "patch_size": patch,
        "hidden_size": hidden,
        "num_hidden_layers": 1 + max(int(match[1]) for name in weights if (match := layer.fullmatch(name))),
        "num_attention_heads": max(1, hidden // PUBLISHED_HEAD),
        "intermediate_size": ffn,
    }


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


class Tower(nn.Module):
    """`pixel_values` `[B, 3, H, W]` -> `[B, tokens, hidden]` float32: the hidden state `select_layer`."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = LayerNorm(config.hidden, eps=config.eps)  # CLIP's own spelling
        self.layers = vit.layers(config)

    def forward(self, pixels: Tensor) -> Tensor:
        x = vit.through(self.layers, self.pre_layrnorm(self.embeddings(pixels)))
        return x if self.config.cls else x[:, 1:]

    def folding(self) -> Folding:
        return vit.folding(self.layers) if len(self.layers) else Folding(gives=Fold("pre_layrnorm", (), shifts=True))


def keys(config: TowerConfig, prefix: str) -> dict[str, Source]:
    """Each parameter's key in a checkpoint whose tower lies under `prefix` (ends with "vision_model.")."""
    with torch.device("meta"):
        names = Tower(config).state_dict()
    return vit.keys(names, prefix)


def ignored(config: TowerConfig) -> str:
    """A pattern of the names below the prefix that are never computed with."""
    return rf"post_layernorm\..*|embeddings\.position_ids|{vit.unused_layers(config)}"


def tiny() -> Tower:
    torch.manual_seed(0)
    return Tower(TowerConfig(image_size=56, patch_size=14, hidden=32, layers=3, heads=2, ffn=64))
