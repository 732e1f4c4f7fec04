"""Linear layers with GELU between, the projector of LLaVA-1.5 (`mm_projector_type: mlp2x_gelu`; arXiv 2310.03744)."""

from __future__ import annotations

import torch
from torch import nn

from exporters.models.layers import Activation, Linear
from exporters.models.projectors import ProjectorConfig

KIND = "mlp{depth}x_gelu"


class Projector(nn.Sequential):
    """`[B, N, inputs]` -> `[B, N, hidden]` float32."""

    def __init__(self, config: ProjectorConfig) -> None:
        layers: list[nn.Module] = [Linear(config.inputs, config.hidden)]
        for _ in range(config.depth - 1):
            layers += [Activation("gelu"), Linear(config.hidden, config.hidden)]
        super().__init__(*layers)


def tokens(config: ProjectorConfig) -> int:
    return config.grid**2 + config.cls


def tiny() -> Projector:
    torch.manual_seed(0)
    return Projector(ProjectorConfig(inputs=32, hidden=64, grid=4, depth=2))
