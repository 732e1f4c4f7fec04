"""Activations rounded to int8 as engines round them when they run, in torch: the reference of what their kernels do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from exporters.models.layers import Linear
from exporters.quantization.integers import BLOCK

Kind = Literal["none", "tensor", "row", "block", "superblock"]
_SUPERBLOCK = 256
_TINY = torch.finfo(torch.float32).tiny


@contextmanager
def rounding(module: nn.Module, kinds: Mapping[str, Kind]) -> Iterator[None]:
    """Within it the linears of `module` get their inputs rounded; `kinds`: a linear's name -> how."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, Linear)}
    handles = [layers[name].register_forward_pre_hook(_hook(kind)) for name, kind in kinds.items() if kind != "none"]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def rounded(x: Tensor, kind: Kind) -> Tensor:
    """`[…, K]` float32, as the integers that stand for it say.

    - tensor: uint8 with one scale and zero point a call (ONNX's DynamicQuantizeLinear);
    - row: int8 with a scale and zero point for each row (XNNPACK's qd8);
    - block: int8 with one scale for each row and block of 32 (ONNX Runtime's MatMulNBits at accuracy level 4; the last
      block may be shorter);
    - superblock: the same with blocks of 256 (llama.cpp's Q8_K).
    """
    if kind == "tensor":
        return asymmetric(x, x.amin(), x.amax())
    if kind == "row":
        return asymmetric(x, x.amin(-1, keepdim=True), x.amax(-1, keepdim=True))
    if kind == "block":
        return _blocks(x, BLOCK)
    if kind == "superblock":
        return _blocks(x, _SUPERBLOCK)
    return x


def asymmetric(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """256 levels from `low` to `high`, one of which is 0 exactly."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / 255).clamp(min=_TINY)
    zero = (-low / scale).round().clamp(0, 255)
    return (x / scale).round_().add_(zero).clamp_(0, 255).sub_(zero).mul_(scale)


def _blocks(x: Tensor, block: int) -> Tensor:
    columns = x.shape[-1]
    blocks = nn.functional.pad(x, (0, -columns % block)).unflatten(-1, (-1, block))
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).clamp(min=_TINY)
    return (blocks / scale).round_().mul_(scale).flatten(-2)[..., :columns]


def _hook(kind: Kind) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    return lambda _, inputs: (rounded(inputs[0], kind),)
