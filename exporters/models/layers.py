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


class GELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ops.current().gelu(x)


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return ops.current().quick_gelu(x)
