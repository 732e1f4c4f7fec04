"""The layers of a vision transformer (arXiv 2010.11929) with norms before attention and MLP, which families share."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Protocol, cast

from torch import Tensor, nn

from edge.errors import CheckpointError
from exporters.models import ops
from exporters.models.folding import ACTIVATION, Fold, Folding
from exporters.models.layers import Activation, LayerNorm, Linear
from exporters.models.sizes import MOST_LAYERS, MOST_SIZE
from exporters.models.source import Source
from exporters.models.vision import VisionConfig


class ViTConfig(VisionConfig, Protocol):
    @property
    def ffn(self) -> int: ...
    @property
    def eps(self) -> float: ...
    @property
    def activation(self) -> str:
        """One of `exporters.models.ops.ACTIVATIONS`."""
        ...


def told(
    config: Mapping[str, Any], defaults: Mapping[str, Any], model_types: Collection[str], activations: Collection[str]
) -> dict[str, Any]:
    """The fields of a family's config, with `defaults` for those that it leaves out. Raises CheckpointError that names
    the field that the family does not have so."""
    found = {**defaults, **config}
    for name, legal in (("model_type", model_types), ("hidden_act", activations)):
        if found[name] not in tuple(legal):
            what = " is a" if name == "model_type" else f"'s {name} is"
            raise CheckpointError(f"the vision encoder{what} {found[name]!r}", hint="one of: " + ", ".join(legal))
    for name, default in defaults.items():
        kinds = (int,) if isinstance(default, int) else (int, float)
        if not isinstance(default, str) and not (type(found[name]) in kinds and 0 < found[name] < math.inf):
            raise CheckpointError(
                f"the vision encoder's {name} is {found[name]!r}", hint="it must be a positive number"
            )
        most = MOST_LAYERS if name == "num_hidden_layers" else MOST_SIZE
        if isinstance(default, int) and found[name] > most:
            raise CheckpointError(f"the vision encoder's {name} is {found[name]!r}", hint="no model is so large")
    if found["num_channels"] != 3:
        raise CheckpointError(f"the vision encoder's num_channels is {found['num_channels']}", hint="3, for RGB images")
    if found["hidden_size"] % found["num_attention_heads"] or found["image_size"] < found["patch_size"]:
        raise CheckpointError(
            f"the vision encoder cannot be built: { {name: found[name] for name in defaults} }",
            hint="hidden_size must be a multiple of num_attention_heads, image_size at least patch_size",
        )
    return found


class Attention(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        d = config.hidden
        self.heads = config.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = Linear(d, d), Linear(d, d), Linear(d, d), Linear(d, d)

    def forward(self, x: Tensor, empty: Tensor | None = None) -> Tensor:
        y = ops.current().attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, empty)
        return self.out_proj(y)


class MLP(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden, config.ffn)
        self.fc2 = Linear(config.ffn, config.hidden)
        self.activation = Activation(config.activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.hidden, eps=config.eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = LayerNorm(config.hidden, eps=config.eps)
        self.mlp = MLP(config)


def layers(config: ViTConfig) -> nn.ModuleList:
    """Those that are computed."""
    return nn.ModuleList(Layer(config) for _ in range(config.run_layers))


def through(layers: nn.ModuleList, x: Tensor, empty: Tensor | None = None) -> Tensor:
    """x `[B, N, hidden]` after the last layer. Each sum is part of the norm that follows it. empty `[B, N]`: 1 at what
    no other position sees."""
    delta: Tensor | None = None
    for layer in cast("list[Layer]", layers):
        normed, x = (layer.layer_norm1(x), x) if delta is None else layer.layer_norm1.add(x, delta)
        normed, x = layer.layer_norm2.add(x, layer.self_attn(normed, empty))
        delta = layer.mlp(normed)
    return x if delta is None else x + delta


def folding(layers: nn.ModuleList) -> Folding:
    """Of `through`, whose output is the residual stream: what is added last can be shifted, not scaled."""
    folds, unfolded = [], {}
    for at in (f"layers.{index}" for index in range(len(layers))):
        heads = tuple(f"{at}.self_attn.{name}_proj" for name in "qkv")
        folds += [
            Fold(f"{at}.layer_norm1", heads, shifts=True),
            # The weights of attention have the sum one: it passes constants on.
            Fold(f"{at}.self_attn.v_proj", (f"{at}.self_attn.out_proj",), shifts=True),
            Fold(f"{at}.layer_norm2", (f"{at}.mlp.fc1",), shifts=True),
        ]
        unfolded[f"{at}.mlp.fc2"] = ACTIVATION
    last = Fold(f"layers.{len(layers) - 1}.mlp.fc2", (), scales=False, shifts=True) if len(layers) else None
    return Folding(tuple(folds), unfolded, gives=last)


def unused_layers(config: ViTConfig) -> str:
    """A pattern of the names of those that are not computed."""
    unused = "|".join(str(index) for index in range(config.run_layers, config.layers)) or "-"
    return rf"encoder\.layers\.(?:{unused})\..*"


def keys(names: Collection[str], prefix: str) -> dict[str, Source]:
    """Each parameter's tensor in a checkpoint in transformers' layout whose tower lies under `prefix`."""
    return {
        name: Source((f"{prefix}encoder.{name}" if name.startswith("layers.") else prefix + name,)) for name in names
    }
