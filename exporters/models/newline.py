"""The row that ends each line of embeddings (LLaVA-NeXT's `image_newline`), behind those of every view."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exporters.models import folding
from exporters.models.component import Component
from exporters.models.folding import Folding
from exporters.models.source import Source


class Newline(nn.Module):
    """`[B, N, inputs]` -> `[B, N + 1, hidden]` float32: what the projector gives, and one row that is learned.

    So every format carries the row with the weights, and an image of one view ends with it by itself, as it must.
    """

    def __init__(self, projector: nn.Module, hidden: int) -> None:
        super().__init__()
        self.projector = projector
        self.row = nn.Parameter(torch.zeros(hidden))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.projector(x)
        return torch.cat([rows, self.row.expand(rows.shape[0], 1, -1)], dim=1)

    def folding(self) -> Folding:
        return folding.folding(self.projector).within("projector")


def with_newline(projector: Component, hidden: int, name: str) -> Component:
    """The projector's component, with the checkpoint's tensor `name` behind the rows of a view."""
    keys = {f"projector.{own}": source for own, source in projector.keys.items()}
    return Component("projector", lambda: Newline(projector.build(), hidden), {**keys, "row": Source((name,))})
