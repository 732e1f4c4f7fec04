"""Pixel shuffle, a norm and an MLP: InternVL's projector (arXiv 2404.16821, section 3.1), as transformers has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from edge.errors import CheckpointError
from exporters.models.folding import ACTIVATION, Fold, Folding
from exporters.models.layers import Activation, LayerNorm, Linear
from exporters.models.projectors import ProjectorConfig, need_grid

KIND = "internvl"
SETTINGS = {"downsample_ratio": 0.5, "projector_hidden_act": "gelu"}
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu", "relu": "relu"}


@dataclass(frozen=True)
class Config(ProjectorConfig):
    factor: int = 2  # patches a side that become one embedding
    activation: str = "gelu"


def from_config(shape: ProjectorConfig, told: Mapping[str, Any]) -> Config:
    """`downsample_ratio` and `projector_hidden_act`, as transformers' InternVLConfig names and presets them.

    Raises CheckpointError that names the field, where it cannot be.
    """
    need_grid(replace(shape, cls=False), KIND)
    ratio, act = (told.get(name, usual) for name, usual in SETTINGS.items())
    if type(ratio) not in (int, float) or not 0 < ratio <= 1 or shape.grid % (factor := round(1 / ratio)):
        raise CheckpointError(
            f"downsample_ratio is {ratio!r}, and an image has {shape.grid} x {shape.grid} patches",
            hint="one over a number that divides the patches of a side: 0.5, for one",
        )
    if factor * ratio != 1:
        raise CheckpointError(f"downsample_ratio is {ratio!r}", hint="one over a whole number: 0.5, for one")
    if act not in tuple(ACTIVATIONS):
        raise CheckpointError(
            f"projector_hidden_act {act!r} is not supported", hint="one of: " + ", ".join(ACTIVATIONS)
        )
    return Config(**asdict(shape), factor=factor, activation=ACTIVATIONS[act])


class Projector(nn.Module):
    """`[B, N, inputs]` -> `[B, (G / factor)**2, hidden]` float32, rows in row-major order of the grid; the row of a
    class token is left out. What was factor x factor patches is one row of their channels, row after row."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.config = c = config if isinstance(config, Config) else from_config(config, {})
        joined = c.inputs * c.factor**2
        self.layer_norm = LayerNorm(joined)
        self.linear_1, self.linear_2 = Linear(joined, c.hidden), Linear(c.hidden, c.hidden)
        self.activation = Activation(c.activation)

    def forward(self, x: Tensor) -> Tensor:
        c = self.config
        side = c.grid // c.factor
        x = x[:, 1:] if c.cls else x
        # B stands before the rows of the grid: no tensor has more than four axes.
        x = x.reshape(-1, c.factor, side, c.factor * c.inputs).transpose(1, 2)  # [B * G/f, G/f, f, f * C]
        x = self.layer_norm(x.reshape(-1, side**2, c.factor**2 * c.inputs))
        return cast("Tensor", self.linear_2(self.activation(self.linear_1(x))))

    def folding(self) -> Folding:
        return Folding((Fold("layer_norm", ("linear_1",), shifts=True),), {"linear_2": ACTIVATION})


def tokens(config: ProjectorConfig) -> int:
    own = config if isinstance(config, Config) else from_config(config, {})
    return (own.grid // own.factor) ** 2


def tiny() -> Projector:
    torch.manual_seed(0)
    return Projector(Config(inputs=32, hidden=64, grid=4))
