"""Tower and projector as one module: what turns pixels into rows that a decoder reads."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from exporters.models import folding
from exporters.models.component import Component
from exporters.models.folding import Folding
from exporters.models.vision import VisionConfig


class Encoder(nn.Module):
    """`pixel_values` `[B, 3, H, W]`, or what else the tower reads, -> `image_embeds` `[B, N, D]`, float32."""

    def __init__(self, tower: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.projector = projector

    @property
    def tower_config(self) -> VisionConfig:
        config: VisionConfig = cast("Any", self.tower).config
        return config

    @property
    def view_shape(self) -> tuple[int, ...]:
        """Of `pixel_values` of one view: the tower's own, or a square's."""
        size = self.tower_config.image_size
        shape: tuple[int, ...] = getattr(self.tower_config, "view_shape", (1, 3, size, size))
        return shape

    def forward(self, pixel_values: Tensor) -> Tensor:
        rows: Tensor = self.projector(self.tower(pixel_values))
        return rows

    def folding(self) -> Folding:
        parts = (("tower", self.tower), ("projector", self.projector))
        return folding.joined(folding.folding(module).within(name) for name, module in parts)


def fused(tower: Component, projector: Component) -> Component:
    keys = {f"tower.{name}": key for name, key in tower.keys.items()}
    keys |= {f"projector.{name}": key for name, key in projector.keys.items()}
    return Component("vision", lambda: Encoder(tower.build(), projector.build()), keys)
