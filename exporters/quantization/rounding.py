"""What a format and scheme do to both sides of a linear layer, as plain arithmetic: to choose by, not to store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from edge import plugins
from exporters.quantization import integers
from exporters.quantization.activations import Kind, asymmetric, rounded


class Rounding(NamedTuple):
    """activations: as in a format's ACTIVATIONS. weights: "row8" and "tensor8", int8 with a scale for each row or one
    for all; "block8" and "block4"."""

    activations: Kind
    weights: str


# What is left out keeps floats on both sides. Kinds of other bits count as the nearest of these.
WEIGHTS: Mapping[str, Mapping[str, str]] = {
    "onnx": {"w8a8": "row8", "w8": "block8", "w4": "block4"},
    "tflite": {"w8a8": "row8", "w8": "row8", "w4": "block4", "legacy": "tensor8"},
    "executorch": {"w8a8": "row8", "w8": "row8", "8da4w": "block4"},
    "coreml": {"w8": "row8", "w4": "block4", "pal4": "block4"},
    "gguf": {
        **dict.fromkeys(("q8_0", "q6_k"), "block8"),
        **dict.fromkeys(("q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q4_0"), "block4"),
        **dict.fromkeys(("iq4_nl", "iq4_xs", "q3_k_m"), "block4"),
    },
}


def of(format: str, scheme: str) -> Rounding | None:
    """None: nothing is rounded to integers."""
    if (weights := WEIGHTS.get(format, {}).get(scheme)) is None:
        return None
    return Rounding(plugins.facts("exporters.formats", format)["ACTIVATIONS"].get(scheme, "none"), weights)


def activations(rows: Tensor, least: Tensor, largest: Tensor, kind: Kind) -> Tensor:
    """rows `[N, K]` float32, some of those of a pass; least and largest `[K]`, of all of them."""
    return asymmetric(rows, least.min(), largest.max()) if kind == "tensor" else rounded(rows, kind)


def weights(weight: Tensor, kind: str, importance: Tensor | None = None) -> Tensor:
    """weight `[N, K]` float32; `importance` `[K]` guides 4-bit rounding."""
    made: Mapping[str, Callable[[], integers.PerChannel | integers.Blockwise]] = {
        "row8": lambda: integers.per_channel(weight),
        "tensor8": lambda: integers.per_tensor(weight),
        "block8": lambda: integers.blockwise(weight, 8),
        "block4": lambda: integers.blockwise(weight, 4, importance),
    }
    return made[kind]().dequantized()
