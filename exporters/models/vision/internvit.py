"""InternViT (arXiv 2404.16821, section 3.1), as transformers' InternVL has it: a class token, layers whose outputs
have a scale for each channel, and queries and keys that may be normed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from edge.errors import CheckpointError
from exporters.models import ops, vit
from exporters.models.folding import Folding
from exporters.models.layers import Conv2d, LayerNorm, Linear, RMSNorm
from exporters.models.source import Source, Squeeze

KIND = "internvit"
MODEL_TYPES = ("internvl_vision",)
CLASS_TOKEN = True
MARKS = r"embeddings\.(?:cls_token|position_embeddings|patch_embeddings)|encoder\.layer\.\d+"
PROCESSOR = "CLIPImageProcessor"
PUBLISHED = None  # every one of them has a config
# transformers' names -> ours
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
DEFAULTS: dict[str, Any] = {  # transformers' InternVLVisionConfig
    "model_type": "internvl_vision",
    "image_size": 448,
    "patch_size": 14,
    "num_channels": 3,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
}
FLAGS = {"attention_bias": False, "use_qk_norm": False}
ALWAYS = {"use_absolute_position_embeddings": True, "use_mean_pooling": True}  # the published are all so
NORMS = ("layer_norm", "rms_norm")
GGUF_NAMES = None  # llama.cpp's own program sees one view of an image
_QK_EPS = 1e-6  # of the norms of queries and keys; no config tells it
# Our names -> the checkpoint's, in this order.
_SPELLED = (
    ("embeddings.class_embedding", "embeddings.cls_token"),
    ("embeddings.patch_embedding", "embeddings.patch_embeddings.projection"),
    ("embeddings.position_embedding.weight", "embeddings.position_embeddings"),
    ("layers.", "encoder.layer."),
    ("self_attn.scale", "lambda_1"),
    ("mlp.scale", "lambda_2"),
    ("layer_norm1", "layernorm_before"),
    ("layer_norm2", "layernorm_after"),
    ("self_attn.out_proj", "attention.projection_layer"),
    ("self_attn", "attention"),
)


@dataclass(frozen=True)
class TowerConfig:
    image_size: int
    patch_size: int
    hidden: int
    layers: int  # in the checkpoint; `run_layers` of them are computed
    heads: int
    ffn: int
    eps: float = 1e-6
    activation: str = "gelu"
    bias: bool = True  # of queries, keys and values
    qk_norm: bool = False  # queries and keys are normed, each over all heads
    rms: bool = False  # a layer's norms are RMS norms
    select_layer: int = -1  # of the hidden states: 0 is the embedding, -1 the last layer's output
    cls: bool = False  # the class token's embedding is not given

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
        return self.grid**2


def from_config(config: Mapping[str, Any], *, select_layer: int = -1, select_feature: str = "patch") -> TowerConfig:
    """From the `vision_config` of an InternVL checkpoint; what it leaves out is as in transformers'
    InternVLVisionConfig. Raises CheckpointError that names the field."""
    if select_feature != "patch":
        raise CheckpointError(f"InternViT's feature {select_feature!r} is not supported", hint="it must be 'patch'")
    edges = {name: _edge(name, config[name]) for name in ("image_size", "patch_size") if name in config}
    told = vit.told({**config, **edges}, DEFAULTS, MODEL_TYPES, ACTIVATIONS)
    flags = {name: config.get(name, usual) for name, usual in (FLAGS | ALWAYS).items()}
    for name, value in flags.items():
        if not isinstance(value, bool) or (name in ALWAYS and value is not ALWAYS[name]):
            raise CheckpointError(
                f"the vision encoder's {name} is {value!r}, which is not computed",
                hint="true or false" if name in FLAGS else "true, as in the published checkpoints",
            )
    if (norm := config.get("norm_type", NORMS[0])) not in NORMS:
        raise CheckpointError(f"the vision encoder's norm_type is {norm!r}", hint="one of: " + ", ".join(NORMS))
    return TowerConfig(
        image_size=told["image_size"],
        patch_size=told["patch_size"],
        hidden=told["hidden_size"],
        layers=told["num_hidden_layers"],
        heads=told["num_attention_heads"],
        ffn=told["intermediate_size"],
        eps=told["layer_norm_eps"],
        activation=ACTIVATIONS[told["hidden_act"]],
        bias=flags["attention_bias"],
        qk_norm=flags["use_qk_norm"],
        rms=norm == "rms_norm",
        select_layer=select_layer,
    )


def _edge(name: str, value: object) -> object:
    """Of a square that is told by both its edges."""
    if isinstance(value, list | tuple):
        if len(value) != 2 or value[0] != value[1]:
            raise CheckpointError(f"the vision encoder's {name} is {value!r}", hint="a square, as published")
        return value[0]
    return value


class Embeddings(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(1, config.hidden))
        self.patch_embedding = Conv2d(3, config.hidden, config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Embedding(config.positions, config.hidden)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [B, G*G, D]
        cls = self.class_embedding.expand(pixels.shape[0], 1, -1)
        return torch.cat([cls, patches], dim=1) + self.position_embedding.weight  # [B, 1 + G*G, D]


class Attention(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        d, self.heads = config.hidden, config.heads
        self.q_proj, self.k_proj, self.v_proj = (Linear(d, d, bias=config.bias) for _ in "qkv")
        self.q_norm, self.k_norm = (RMSNorm(d, _QK_EPS) if config.qk_norm else nn.Identity() for _ in "qk")
        self.out_proj = Linear(d, d)
        self.scale = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor, empty: Tensor | None = None) -> Tensor:
        q, k = self.q_norm(self.q_proj(x)), self.k_norm(self.k_proj(x))
        y = self.out_proj(ops.current().attention(q, k, self.v_proj(x), self.heads, empty))
        return cast("Tensor", y * self.scale)


class MLP(vit.MLP):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__(config)
        self.scale = nn.Parameter(torch.ones(config.hidden))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class Layer(nn.Module):
    """With the names of `exporters.models.vit.Layer`."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        norm = RMSNorm if config.rms else LayerNorm
        self.layer_norm1, self.layer_norm2 = (norm(config.hidden, eps=config.eps) for _ in range(2))
        self.self_attn, self.mlp = Attention(config), MLP(config)


class Tower(nn.Module):
    """`pixel_values` `[B, 3, H, W]` -> `[B, tokens, hidden]` float32: the hidden state `select_layer`, its class token
    left out."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.run_layers))

    def forward(self, pixels: Tensor) -> Tensor:
        return vit.through(self.layers, self.embeddings(pixels))[:, 1:]

    def folding(self) -> Folding:
        """The last layer's scale lies between what it adds and who reads that: a constant would be scaled, too."""
        return replace(vit.folding(self.layers), gives=None)


def keys(config: TowerConfig, prefix: str) -> dict[str, Source]:
    """Each parameter's key in a checkpoint whose tower lies under `prefix`."""
    with torch.device("meta"):
        names = Tower(config).state_dict()
    single = ("embeddings.class_embedding", "embeddings.position_embedding.weight")
    return {name: Source((prefix + _theirs(name),), Squeeze() if name in single else None) for name in names}


def _theirs(name: str) -> str:
    for ours, theirs in _SPELLED:
        name = name.replace(ours, theirs)
    return name


def ignored(config: TowerConfig) -> str:
    """A pattern of the names below the prefix that are never computed with: the mask is for training."""
    unused = vit.unused_layers(config).replace("layers", "layer")
    return rf"embeddings\.mask_token|{unused}"


def tiny() -> Tower:
    torch.manual_seed(0)
    return Tower(TowerConfig(image_size=56, patch_size=14, hidden=32, layers=3, heads=2, ffn=64, qk_norm=True))
