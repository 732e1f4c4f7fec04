"""Weights in ggml's block layouts, as far as they are packed here; the rest is llama.cpp's own quantiser's."""

from __future__ import annotations

import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from numpy.typing import NDArray
from torch import Tensor

from exporters.quantization import integers

SUPER = 256  # weights of a K-quant's block
_AT_ONCE = 1 << 20  # weights; bounds what packing a large table takes


def fitting(kind: Kind, shape: tuple[int, ...]) -> Kind:
    """The type a tensor can be stored as: vectors are never rounded, and rows that no block divides stay float16."""
    if len(shape) == 1:
        return Kind.F32
    if kind == Kind.Q6_K and shape[-1] % SUPER:
        kind = Kind.Q8_0
    if kind in (Kind.Q4_0, Kind.Q8_0) and (len(shape) != 2 or shape[-1] % integers.BLOCK):
        return Kind.F16
    return kind


def pack(
    weight: Tensor, kind: Kind, importance: Tensor | None = None, scales: Tensor | None = None
) -> NDArray[np.generic]:
    """weight float32 -> the array whose bytes are stored. `importance` `[columns]` guides 4-bit rounding; `scales`
    `[N, blocks]` are those of a weight that is rounded so already."""
    if kind == Kind.Q4_0:
        return _q4_0(weight, importance, scales)
    if kind == Kind.Q6_K:
        return np.concatenate([_q6_k(rows.numpy()) for rows in weight.split(max(1, _AT_ONCE // weight.shape[1]))])
    packed: NDArray[np.generic] = quants.quantize(weight.contiguous().numpy(), kind)
    return packed


def _q4_0(weight: Tensor, importance: Tensor | None, scales: Tensor | None) -> NDArray[np.uint8]:
    """Blocks of 32: a float16 scale, then the levels plus 8, the first half of the block in the low nibbles."""
    found = integers.blockwise(weight, bits=4, importance=importance, scales=scales)
    levels = (found.values + 8).to(torch.uint8)
    nibbles = levels[..., :16] | levels[..., 16:] << 4  # [N, blocks, 16]
    halves = found.scales.half()[..., None].view(torch.uint8)  # [N, blocks, 2]
    packed: NDArray[np.uint8] = torch.cat([halves, nibbles], dim=-1).flatten(1).numpy()
    return packed


def _q6_k(weight: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Blocks of 256: sixteen int8 scales, in units of one float16, over levels -32..31 in the order ggml keeps them."""
    x = weight.reshape(-1, 16, 16)  # [blocks, scales, weights]
    peak = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)[..., 0]
    scale = peak / -32  # the largest weight goes to -32, whatever its sign
    unit = (np.abs(scale).max(-1, keepdims=True) / 127).astype(np.float16)
    shares = np.divide(scale, unit, out=np.zeros_like(scale), where=unit > 0).round().clip(-127, 127)
    step = (shares * unit)[..., None].astype(np.float32)
    levels = np.divide(x, step, out=np.zeros_like(x), where=step != 0).round().clip(-32, 31)
    six = (levels + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = (six & 15).reshape(-1, 2, 2, 64)
    low = low[:, :, 0] | low[:, :, 1] << 4  # [blocks, 2, 64]
    high = np.bitwise_or.reduce((six >> 4) << np.array([0, 2, 4, 6], np.uint8)[:, None], axis=2)  # [blocks, 2, 32]
    pieces = (low, high, shares.astype(np.int8).view(np.uint8), unit.view(np.uint8))
    blocks = np.concatenate([piece.reshape(len(x), -1) for piece in pieces], axis=1)
    return blocks.reshape(len(weight), -1)
