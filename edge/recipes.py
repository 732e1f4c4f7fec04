"""Recipes: the format and scheme of each role. A device names a recipe; a call may change its targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# How a decoder's weights come to 4 bits: the best scale of each block alone, or with errors handed on.
SEARCH, GPTQ = QUANTIZERS = ("search", "gptq")


@dataclass(frozen=True)
class Target:
    format: str
    scheme: str

    def __str__(self) -> str:
        return f"{self.format} {self.scheme}"


@dataclass(frozen=True)
class Recipe:
    """Role -> target. The projector goes with the vision tower: they are written as one part. `mmproj` is the same once
    more, beside the parts, for llama.cpp's own multimodal programs."""

    name: str
    targets: Mapping[str, Target]
    widened: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # role -> a layer's weight -> its own scheme
    quantize: str = SEARCH  # of QUANTIZERS


def _recipe(name: str, vision: Target, decoder: Target, mmproj: Target | None = None) -> Recipe:
    return Recipe(name, {"vision": vision, "decoder": decoder} | ({"mmproj": mmproj} if mmproj else {}))


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _recipe("onnx-w8a8-w4", Target("onnx", "w8a8"), Target("onnx", "w4")),
        _recipe("onnx-w8a8-w8", Target("onnx", "w8a8"), Target("onnx", "w8")),
        _recipe("onnx-fp32", Target("onnx", "fp32"), Target("onnx", "fp32")),
        _recipe("onnx-w16a16-w4a16", Target("onnx", "w16a16"), Target("onnx", "w4a16")),
        _recipe("onnx-w16a16-w16a16", Target("onnx", "w16a16"), Target("onnx", "w16a16")),
        _recipe("gguf-q4_0", Target("onnx", "w8a8"), Target("gguf", "q4_0"), Target("gguf", "q8_0")),
        _recipe("gguf-q4_k_m", Target("onnx", "w8a8"), Target("gguf", "q4_k_m"), Target("gguf", "q8_0")),
        _recipe("gguf-f16", Target("onnx", "fp32"), Target("gguf", "f16"), Target("gguf", "f16")),
        _recipe("gguf-bf16", Target("onnx", "fp32"), Target("gguf", "bf16"), Target("gguf", "f16")),
        _recipe("tflite-w8a8-w4", Target("tflite", "w8a8"), Target("tflite", "w4")),
        _recipe("tflite-w8a8-w8", Target("tflite", "w8a8"), Target("tflite", "w8")),
        _recipe("tflite-fp32", Target("tflite", "fp32"), Target("tflite", "fp32")),
        _recipe("tflite-legacy", Target("tflite", "legacy"), Target("tflite", "legacy")),
        _recipe("executorch-w8a8-8da4w", Target("executorch", "w8a8"), Target("executorch", "8da4w")),
        _recipe("executorch-w8a8-w8", Target("executorch", "w8a8"), Target("executorch", "w8")),
        _recipe("executorch-fp32", Target("executorch", "fp32"), Target("executorch", "fp32")),
        _recipe("onnx-w8a8-gguf-q4_0", Target("onnx", "w8a8"), Target("gguf", "q4_0")),
        _recipe("onnx-w8a8-gguf-q4_k_m", Target("onnx", "w8a8"), Target("gguf", "q4_k_m")),
        _recipe("onnx-w16a16-gguf-q4_k_m", Target("onnx", "w16a16"), Target("gguf", "q4_k_m")),
        _recipe("onnx-w16a16-gguf-q4_0", Target("onnx", "w16a16"), Target("gguf", "q4_0")),
        _recipe("coreml-w8-w4", Target("coreml", "w8"), Target("coreml", "w4")),
        _recipe("coreml-w8-w8", Target("coreml", "w8"), Target("coreml", "w8")),
        _recipe("coreml-w8-pal4", Target("coreml", "w8"), Target("coreml", "pal4")),
        _recipe("coreml-fp16", Target("coreml", "fp16"), Target("coreml", "fp16")),
    )
}
DEFAULT = "onnx-w8a8-w4"

# Bytes of a weight, with its scales and what is stored wider: what the run side foresees a file's size and a model's
# weights from. A test holds it to the schemes that the formats write.
BYTES_PER_WEIGHT: Mapping[str, Mapping[str, float]] = {
    "onnx": {"fp32": 4.0, "fp16": 2.0, "w8a8": 1.0, "w8": 1.125, "w4": 0.64, "w16a16": 2.0, "w4a16": 0.58},
    "gguf": {
        "f32": 4.0,
        "f16": 2.0,
        "bf16": 2.0,
        "q8_0": 1.0625,
        "q6_k": 0.83,
        "q5_k_m": 0.72,
        "q5_k_s": 0.70,
        "q4_k_m": 0.62,
        "q4_k_s": 0.59,
        "q4_0": 0.60,
        "iq4_nl": 0.59,
        "iq4_xs": 0.56,
        "q3_k_m": 0.51,
    },
    "tflite": {"fp32": 4.0, "fp16": 2.0, "w8a8": 1.0, "w8": 1.0, "w4": 0.60, "legacy": 1.0},
    "executorch": {"fp32": 4.0, "fp16": 2.0, "w8a8": 1.0, "w8": 1.0, "8da4w": 0.59},
    "coreml": {"fp16": 2.0, "w8": 1.01, "w4": 0.58, "pal4": 0.52},
}
# What no decoder is written in: encoders are, or single layers.
NO_DECODER = {
    ("onnx", "w8a8"),
    ("gguf", "f32"),
    ("tflite", "w8a8"),
    ("tflite", "fp16"),
    ("executorch", "w8a8"),
    ("executorch", "fp16"),
}


# Schemes whose graphs keep keys and values as halves.
HALF_CACHE = {("onnx", "w16a16"), ("onnx", "w4a16")}


def bytes_per_weight(format: str, scheme: str) -> float:
    """1 for a scheme that is not known here."""
    return BYTES_PER_WEIGHT.get(format, {}).get(scheme, 1.0)
