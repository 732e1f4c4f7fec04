"""What a format and scheme do to both sides of a linear layer, as plain arithmetic: to choose by, not to store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from edge import plugins
from exporters.quantization import integers
from exporters.quantization.activations import Kind, asymmetric, rounded

_TINY = torch.finfo(torch.float32).tiny
FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FEW_BITS = ("block4", "block5", "block6")


class Rounding(NamedTuple):
    """activations: as in a format's ACTIVATIONS. weights: one of FLOATS; "row8" and "tensor8", int8 with a scale for
    each row or one for all; "block8", and FEW_BITS, with a scale for each block of 32."""

    activations: Kind
    weights: str

    @property
    def integers(self) -> bool:
        return self.weights not in FLOATS


_HALVES = {"fp32": "float32", "f32": "float32", "fp16": "float16", "f16": "float16", "bf16": "bfloat16"}
# llama.cpp's mixes hold several kinds: the usual one is taken, in the nearest of these.
WEIGHTS: Mapping[str, Mapping[str, str]] = {
    "onnx": {**_HALVES, "w8a8": "row8", "w8": "block8", "w4": "block4", "w16a16": "float16", "w4a16": "block4"},
    "tflite": {**_HALVES, "w8a8": "row8", "w8": "row8", "w4": "block4", "legacy": "tensor8"},
    "executorch": {**_HALVES, "w8a8": "row8", "w8": "row8", "8da4w": "block4"},
    "coreml": {**_HALVES, "w8": "row8", "w4": "block4", "pal4": "block4"},
    "gguf": {
        **_HALVES,
        "q8_0": "block8",
        "q6_k": "block6",
        **dict.fromkeys(("q5_k_m", "q5_k_s"), "block5"),
        **dict.fromkeys(("q4_k_m", "q4_k_s", "q4_0", "iq4_nl", "iq4_xs", "q3_k_m"), "block4"),
    },
}


def of(format: str, scheme: str) -> Rounding:
    """A format that this table does not know rounds nothing."""
    kinds: Mapping[str, Kind] = plugins.facts("exporters.formats", format).get("ACTIVATIONS", {})
    return Rounding(kinds.get(scheme, "none"), WEIGHTS.get(format, {}).get(scheme, "float32"))


def activations(rows: Tensor, least: Tensor, largest: Tensor, kind: Kind) -> Tensor:
    """rows `[N, K]` float32, some of those of a pass; least and largest `[K]`, of all of them."""
    return asymmetric(rows, least.min(), largest.max()) if kind == "tensor" else rounded(rows, kind)


def weights(weight: Tensor, kind: str, importance: Tensor | None = None) -> Tensor:
    """weight `[N, K]` float32; `importance` `[K]` guides 4-bit rounding."""
    if kind in FLOATS:
        return weight.to(FLOATS[kind]).float()
    if kind == "row8":
        return integers.per_channel(weight).dequantized()
    if kind == "tensor8":
        return integers.per_tensor(weight).dequantized()
    bits = int(kind.removeprefix("block"))
    if bits in (4, 8):
        return integers.blockwise(weight, bits, importance).dequantized()
    return _blocks(weight, 2 ** (bits - 1) - 1)


def _blocks(weight: Tensor, largest: int) -> Tensor:
    blocks = F.pad(weight, (0, -weight.shape[1] % integers.BLOCK)).unflatten(1, (-1, integers.BLOCK))
    scales = (blocks.abs().amax(-1, keepdim=True) / largest).clamp(min=_TINY)
    return ((blocks / scales).round() * scales).flatten(1)[:, : weight.shape[1]]
