"""Residual convolutions around a pool, the C-Abstractor of Honeybee (`c-abs`; arXiv 2312.06742, section 3.2): blocks of
RegNet (arXiv 2003.13678) whose convolutions of 3x3 see each channel by itself, with squeeze and excitation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from exporters.models import ops
from exporters.models.folding import ACTIVATION, Folding
from exporters.models.layers import Activation, ChannelNorm, Conv2d, LayerNorm, Linear
from exporters.models.projectors import ProjectorConfig, need_grid, section, side

KIND = "c-abs"
USUAL: Mapping[str, Any] = {
    "projector_type": KIND,
    "depth": 3,
    "mlp_depth": 2,
    "hidden_size": 1024,
    "num_queries": 144,
    "num_eos_tokens": 0,
    "pos_emb": True,
    "prenorm": False,
}
SETTINGS = {
    "projector_config": {"depth": 3, "mlp_depth": 2, "hidden_size": 1024, "num_queries": 144, "pos_emb": True},
}
NORM_EPS, BLOCK_EPS = 1e-6, 1e-5  # of the norm before all, and of those in blocks


@dataclass(frozen=True)
class Config(ProjectorConfig):
    """depth is that of the layers behind the convolutions."""

    blocks: int = 3  # before the pool, and behind it
    width: int = 1024
    queries: int = 144
    ends: int = 0  # learned embeddings behind those of an image
    positions: bool = True
    prenorm: bool = False


def from_config(shape: ProjectorConfig, told: Mapping[str, Any]) -> Config:
    """`projector_config`, by Honeybee's names. Raises CheckpointError that names the field."""
    need_grid(replace(shape, cls=False), KIND)
    found = section(told, shape, USUAL)
    side(found["num_queries"], "num_queries")
    return Config(
        **asdict(shape) | {"depth": max(1, found["mlp_depth"])},
        blocks=found["depth"],
        width=found["hidden_size"],
        queries=found["num_queries"],
        ends=found["num_eos_tokens"],
        positions=found["pos_emb"],
        prenorm=found["prenorm"],
    )


class Convolution(nn.Module):
    """Without a bias, and normed."""

    def __init__(self, inputs: int, outputs: int, size: int, groups: int, activation: str | None) -> None:
        super().__init__()
        self.conv = Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
        self.bn = ChannelNorm(outputs, eps=BLOCK_EPS)
        self.activation = Activation(activation) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.bn(self.conv(x)))
        return y


class SqueezeExcitation(nn.Module):
    """Each channel scaled by what the whole image says of it (arXiv 1709.01507)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = Conv2d(channels, squeezed, kernel_size=1)
        self.fc2 = Conv2d(squeezed, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        use = ops.current()
        scale = self.fc2(use.activation(self.fc1(use.pool(x, 1)), "silu"))  # [B, C, 1, 1]
        return x * use.activation(scale, "sigmoid")


class Block(nn.Module):
    """`[B, inputs, H, W]` -> `[B, width, H, W]`"""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1 = Convolution(inputs, width, 1, 1, "silu")
        self.conv2 = Convolution(width, width, 3, width, "silu")
        self.se = SqueezeExcitation(width, round(inputs / 4))
        self.conv3 = Convolution(width, width, 1, 1, None)
        self.downsample = nn.Identity() if inputs == width else Convolution(inputs, width, 1, 1, None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.se(self.conv2(self.conv1(x))))
        return ops.current().activation(y + self.downsample(x), "silu")


class Pool(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return ops.current().pool(x, self.size)


def stage(blocks: int, inputs: int, width: int) -> nn.Sequential:
    made = nn.Sequential()
    for index in range(blocks):
        made.add_module(f"b{index + 1}", Block(inputs if index == 0 else width, width))
    return made


class Projector(nn.Module):
    """`[B, N, inputs]` -> `[B, queries + ends, hidden]` float32, rows in row-major order of the pooled grid. Of a
    shape alone it has 144 queries and three blocks of 1024 channels before the pool, and behind it."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.config = c = config if isinstance(config, Config) else from_config(config, {})
        self.grid = c.grid
        self.prenorm = LayerNorm(c.inputs, eps=NORM_EPS) if c.prenorm else None
        self.pos_emb = nn.Parameter(torch.zeros(1, c.rows, c.inputs)) if c.positions else None
        pool, width = Pool(side(c.queries, "num_queries")), c.width if c.blocks else c.inputs
        if c.blocks:
            self.net: nn.Module = nn.Sequential(stage(c.blocks, c.inputs, width), pool, stage(c.blocks, width, width))
        else:
            self.net = pool
        layers: list[nn.Module] = [Linear(width, c.hidden)]
        for _ in range(1, c.depth):
            layers += [Activation("silu"), Linear(c.hidden, c.hidden)]
        self.readout = nn.Sequential(*layers)
        self.eos_tokens = nn.Parameter(torch.zeros(1, c.ends, c.hidden)) if c.ends else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.prenorm is None else self.prenorm(x)
        x = x if self.pos_emb is None else x + self.pos_emb
        x = x[:, 1:] if self.config.cls else x
        x = x.transpose(1, 2).reshape(x.shape[0], -1, self.grid, self.grid)  # [B, inputs, G, G]
        y: Tensor = self.readout(self.net(x).flatten(2).transpose(1, 2))
        if self.eos_tokens is None:
            return y
        return torch.cat([y, self.eos_tokens.expand(y.shape[0], -1, -1)], dim=1)

    def folding(self) -> Folding:
        return Folding(unfolded={f"readout.{2 * index}": ACTIVATION for index in range(self.config.depth)})


def tokens(config: ProjectorConfig) -> int:
    own = config if isinstance(config, Config) else from_config(config, {})
    return own.queries + own.ends


def tiny() -> Projector:
    torch.manual_seed(0)
    projector = Projector(Config(inputs=32, hidden=64, grid=4, depth=2, blocks=1, width=48, queries=9, ends=1))
    nn.init.normal_(projector.get_parameter("pos_emb"))
    return projector
