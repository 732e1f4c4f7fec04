"""One linear layer, the projector of the first LLaVA (`mm_projector_type: linear`; arXiv 2304.08485)."""

from __future__ import annotations

import torch

from exporters.models.folding import Folding
from exporters.models.layers import Linear
from exporters.models.projectors import ProjectorConfig

KIND = "linear"


class Projector(Linear):
    """`[B, N, inputs]` -> `[B, N, hidden]` float32."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__(config.inputs, config.hidden)

    def folding(self) -> Folding:
        return Folding(reads=("",))


def tokens(config: ProjectorConfig) -> int:
    return config.rows


def tiny() -> Projector:
    torch.manual_seed(0)
    return Projector(ProjectorConfig(inputs=32, hidden=64, grid=4))
