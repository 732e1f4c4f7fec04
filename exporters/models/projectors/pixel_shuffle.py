"""Pixel shuffle and one linear layer, the projector of Idefics3 and SmolVLM (arXiv 2408.12637, 2504.05299)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edge.errors import CheckpointError
from exporters.models.folding import Folding
from exporters.models.layers import Linear
from exporters.models.projectors import ProjectorConfig, need_grid

KIND = "pixel_shuffle"
FACTOR = 2  # transformers' default


@dataclass(frozen=True)
class Config(ProjectorConfig):
    factor: int = FACTOR  # patches a side that become one embedding
    bias: bool = False


def from_config(shape: ProjectorConfig, told: Mapping[str, Any]) -> Config:
    """`scale_factor`, as transformers' Idefics3Config names and presets it.

    Raises CheckpointError where the patches cannot be divided so.
    """
    need_grid(shape, KIND)
    factor = told.get("scale_factor", FACTOR)
    if type(factor) is not int or factor < 1 or shape.grid % factor:
        raise CheckpointError(
            f"scale_factor is {factor!r}, and an image has {shape.grid} x {shape.grid} patches",
            hint="a number that divides the patches of a side",
        )
    return Config(**asdict(shape), factor=factor)


class Projector(nn.Module):
    """`[B, G*G, inputs]` -> `[B, (G / factor)**2, hidden]` float32, rows in row-major order of the grid.

    What was factor x factor patches is one row of their channels, patch after patch, row after row.
    """

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.config = own = config if isinstance(config, Config) else from_config(config, {})
        self.grid = own.grid
        self.proj = Linear(own.inputs * own.factor**2, own.hidden, bias=own.bias)

    def forward(self, x: Tensor) -> Tensor:
        c = self.config
        side = c.grid // c.factor
        # B stands before the rows of the grid: no tensor has more than four axes.
        x = x.reshape(-1, c.factor, side, c.factor * c.inputs).transpose(1, 2)  # [B * G/f, G/f, f, f * C]
        y: Tensor = self.proj(x.reshape(-1, side**2, c.factor**2 * c.inputs))
        return y

    def folding(self) -> Folding:
        return Folding(reads=("proj",), width=self.config.inputs, repeats=self.config.factor**2)


def tokens(config: ProjectorConfig) -> int:
    own = config if isinstance(config, Config) else from_config(config, {})
    return (own.grid // own.factor) ** 2


def tiny() -> Projector:
    torch.manual_seed(0)
    return Projector(ProjectorConfig(inputs=32, hidden=64, grid=4))
