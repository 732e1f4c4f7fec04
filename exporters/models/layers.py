"""The layers of every component. State-dict names are torch's own; the arithmetic is `exporters.models.ops`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exporters.models import ops


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return ops.current().linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return ops.current().layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """(norm(x + delta), x + delta)"""
        return ops.current().add_layer_norm(x, delta, self.weight, self.bias, self.eps)


class ChannelNorm(LayerNorm):
    """Layer norm over the channels of `[B, C, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.current().rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """(norm(x + delta), x + delta)"""
        return ops.current().add_rms_norm(x, delta, self.weight, self.eps)


class Conv2d(nn.Conv2d):
    """`[B, inputs, H, W]` -> `[B, outputs, H', W']`, zeros as padding."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(inputs, outputs, kernel_size, stride=stride, padding=padding, groups=groups, bias=bias)
        self._how = stride, padding, groups

    def forward(self, x: Tensor) -> Tensor:
        return ops.current().conv2d(x, self.weight, self.bias, *self._how)


class Activation(nn.Module):
    """`kind`: one of `exporters.models.ops.ACTIVATIONS`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return ops.current().activation(x, self.kind)
