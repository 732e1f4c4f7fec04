"""Which format and scheme each role is exported to. A device names a recipe; a call may change its targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    format: str
    scheme: str

    def __str__(self) -> str:
        return f"{self.format} {self.scheme}"


@dataclass(frozen=True)
class Recipe:
    """Role -> target. The projector goes with the vision tower: they are written as one part."""

    name: str
    targets: Mapping[str, Target]


def _recipe(name: str, vision: Target, decoder: Target) -> Recipe:
    return Recipe(name, {"vision": vision, "decoder": decoder})


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _recipe("onnx-w8a8-w4", Target("onnx", "w8a8"), Target("onnx", "w4")),
        _recipe("onnx-w8a8-w8", Target("onnx", "w8a8"), Target("onnx", "w8")),
        _recipe("onnx-fp32", Target("onnx", "fp32"), Target("onnx", "fp32")),
    )
}
DEFAULT = "onnx-w8a8-w4"
