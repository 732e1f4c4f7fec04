"""What a format and scheme do to both sides of a linear layer, as plain arithmetic: to choose by, not to store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from exporters.quantization import integers

_TINY = torch.finfo(torch.float32).tiny


class Rounding(NamedTuple):
    """activations: what shares a scale, "tensor" (one image, one prompt), "row", "block" of 32, or "none": floats.
    weights: "row8" and "tensor8", int8 with a scale for each row or one for all; "block8" and "block4"."""

    activations: str
    weights: str


# What is left out keeps floats on both sides. Kinds of other bits count as the nearest of these.
TABLE: Mapping[str, Mapping[str, Rounding]] = {
    "onnx": {
        "w8a8": Rounding("tensor", "row8"),
        "w8": Rounding("block", "block8"),
        "w4": Rounding("block", "block4"),
    },
    "tflite": {
        "w8a8": Rounding("row", "row8"),
        "w8": Rounding("row", "row8"),
        "w4": Rounding("row", "block4"),
        "legacy": Rounding("row", "tensor8"),
    },
    "executorch": {
        "w8a8": Rounding("row", "row8"),
        "w8": Rounding("row", "row8"),
        "8da4w": Rounding("row", "block4"),
    },
    "coreml": {
        "w8": Rounding("none", "row8"),
        "w4": Rounding("none", "block4"),
        "pal4": Rounding("none", "block4"),
    },
    "gguf": {
        **dict.fromkeys(("q8_0", "q6_k"), Rounding("block", "block8")),
        **dict.fromkeys(("q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q4_0"), Rounding("block", "block4")),
        **dict.fromkeys(("iq4_nl", "iq4_xs", "q3_k_m"), Rounding("block", "block4")),
    },
}


def of(format: str, scheme: str) -> Rounding | None:
    """None: nothing is rounded to integers."""
    return TABLE.get(format, {}).get(scheme)


def activations(rows: Tensor, least: Tensor, largest: Tensor, kind: str) -> Tensor:
    """rows `[N, K]` float32, some of those of a pass; least and largest `[K]`, of all of them."""
    if kind == "none":
        return rows
    if kind == "block":
        blocks = F.pad(rows, (0, -rows.shape[1] % integers.BLOCK)).unflatten(1, (-1, integers.BLOCK))
        step = (blocks.abs().amax(dim=-1, keepdim=True) / 127).clamp(min=_TINY)
        return ((blocks / step).round_() * step).flatten(1)[:, : rows.shape[1]]
    if kind == "tensor":
        low, high = least.min(), largest.max()
    else:
        low, high = torch.aminmax(rows, dim=1, keepdim=True)
    low, high = low.clamp(max=0), high.clamp(min=0)  # zero has a level of its own
    step = ((high - low) / 255).clamp(min=_TINY)
    zero = (-low / step).round()
    return ((rows / step + zero).round_().clamp_(0, 255) - zero) * step


def weights(weight: Tensor, kind: str, importance: Tensor | None = None) -> Tensor:
    """weight `[N, K]` float32; `importance` `[K]` guides 4-bit rounding."""
    made: Mapping[str, Callable[[], integers.PerChannel | integers.Blockwise]] = {
        "row8": lambda: integers.per_channel(weight),
        "tensor8": lambda: integers.per_tensor(weight),
        "block8": lambda: integers.blockwise(weight, 8),
        "block4": lambda: integers.blockwise(weight, 4, importance),
    }
    return made[kind]().dequantized()
