"""LDPv2, the projector of MobileVLM V2 (`mm_projector_type: ldpnetv2`; arXiv 2402.03766, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exporters.models import ops
from exporters.models.folding import ACTIVATION, Folding
from exporters.models.layers import Activation, Conv2d, Linear
from exporters.models.projectors import ProjectorConfig, need_grid

KIND = "ldpnetv2"
SIDE = 12  # upstream pools to 12x12 whatever the grid


class FeatureMLP(nn.Module):
    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        d = config.hidden
        self.mlp = nn.Sequential(Linear(config.inputs, d), Activation("gelu"), Linear(d, d))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mlp(x)
        return y


class PositionEncoding(nn.Module):
    """PEG: a depthwise convolution whose zero padding tells each token where it stands."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        d = config.hidden
        self.peg = nn.Sequential(Conv2d(d, d, kernel_size=3, padding=1, groups=d))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.peg(x)
        return y + x


class Projector(nn.Module):
    """`[B, G*G, inputs]` -> `[B, 144, hidden]` float32, rows in row-major order of the grid."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        need_grid(config, KIND)
        self.grid = config.grid
        self.mlp = FeatureMLP(config)
        self.peg = PositionEncoding(config)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(x)  # [B, G*G, D]
        x = x.transpose(1, 2).reshape(x.shape[0], -1, self.grid, self.grid)  # [B, D, G, G]
        x = ops.current().pool(x, SIDE)  # [B, D, 12, 12]
        x = self.peg(x)  # [B, D, 12, 12]
        return x.flatten(2).transpose(1, 2)  # [B, 144, D]

    def folding(self) -> Folding:
        return Folding(unfolded={"mlp.mlp.2": ACTIVATION}, reads=("mlp.mlp.0",))


def tokens(config: ProjectorConfig) -> int:
    return SIDE**2


def tiny() -> Projector:
    torch.manual_seed(0)
    return Projector(ProjectorConfig(inputs=32, hidden=64, grid=24))
