"""LDP, the projector of MobileVLM V1 (`mm_projector_type: ldpnet`; arXiv 2312.16886, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exporters.models import ops
from exporters.models.folding import ACTIVATION, Folding
from exporters.models.layers import Activation, ChannelNorm, Conv2d, Linear
from exporters.models.projectors import ProjectorConfig, need_grid

KIND = "ldpnet"


class SqueezeExcitation(nn.Module):
    """Each channel scaled by what the whole picture says of it (arXiv 1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = max(8, (channels // 4 + 4) // 8 * 8)  # MobileNet counts channels in eights
        self.fc1 = Conv2d(channels, quarter, kernel_size=1)
        self.fc2 = Conv2d(quarter, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        use = ops.current()
        scale = self.fc1(use.pool(x, 1))  # [B, C/4, 1, 1]
        scale = self.fc2(use.activation(scale, "relu"))
        return use.activation(scale, "hardsigmoid") * x


class InvertedResidual(nn.Module):
    """MobileNetV3's block (arXiv 1905.02244) without expansion; with its input added where the size stays."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1
        c = channels
        self.block = nn.Sequential(
            nn.Sequential(
                Conv2d(c, c, kernel_size=3, stride=stride, padding=1, groups=c, bias=False),
                ChannelNorm(c),
                Activation("hardswish"),
            ),
            SqueezeExcitation(c),
            nn.Sequential(Conv2d(c, c, kernel_size=1, bias=False), ChannelNorm(c)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return x + y if self.residual else y


class Projector(nn.Module):
    """`[B, G*G, inputs]` -> `[B, ceil(G/2)**2, hidden]` float32, rows in row-major order of the grid."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        need_grid(config, KIND)
        self.grid = config.grid
        d = config.hidden
        self.model = nn.ModuleDict(
            {
                "mlp": nn.Sequential(nn.Identity(), Linear(config.inputs, d), Activation("gelu"), Linear(d, d)),
                "mb_block": nn.Sequential(nn.Identity(), InvertedResidual(d, stride=1), InvertedResidual(d, stride=2)),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.model["mlp"](x)  # [B, G*G, D]
        x = x.transpose(1, 2).reshape(x.shape[0], -1, self.grid, self.grid)  # [B, D, G, G]
        x = self.model["mb_block"](x)  # [B, D, ceil(G/2), ceil(G/2)]
        return x.flatten(2).transpose(1, 2)

    def folding(self) -> Folding:
        return Folding(unfolded={"model.mlp.3": ACTIVATION}, reads=("model.mlp.1",))


def tokens(config: ProjectorConfig) -> int:
    return ((config.grid + 1) // 2) ** 2


def tiny() -> Projector:
    torch.manual_seed(0)
    return Projector(ProjectorConfig(inputs=32, hidden=64, grid=4))
