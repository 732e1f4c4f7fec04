"""What the decoder's weights become at four bits, for training the decoder to bear it."""

import torch
from torch import Tensor, nn

BLOCK = 32


def rounded(weight: Tensor) -> Tensor:
    """Symmetric four-bit levels -8..7 in blocks of 32 along a row; the gradient passes straight through."""
    blocks = weight.detach().unflatten(1, (-1, BLOCK))  # [rows, blocks, 32]
    largest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
    scale = largest / -8
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    levels = (blocks / scale).round().clamp(-8, 7)
    return weight + ((levels * scale).flatten(1) - weight.detach())


def four_bit(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """The linear weights under `prefix`, rounded, by name: for `torch.func.functional_call`."""
    return {
        name: rounded(weight)
        for name, weight in module.named_parameters()
        if name.startswith(prefix) and weight.ndim == 2 and "embed_tokens" not in name
    }
