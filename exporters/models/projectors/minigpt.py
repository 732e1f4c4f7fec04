"""Four embeddings behind each other as one, and a linear layer: the projector of MiniGPT-v2 (arXiv 2310.09478, section
2.1), as Bunny's code names it (`mm_projector_type: minigpt`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge.errors import CheckpointError
from exporters.models.folding import Folding
from exporters.models.layers import Linear
from exporters.models.projectors import ProjectorConfig

KIND = "minigpt"
JOINED = 4  # embeddings that become one


class Projector(nn.Module):
    """`[B, N, inputs]` -> `[B, N / 4, hidden]` float32, in the order of the rows."""

    def __init__(self, config: ProjectorConfig) -> None:
        """Raises CheckpointError where the rows cannot be joined so."""
        super().__init__()
        self.config = config
        self.rows = tokens(config)
        self.linear = Linear(JOINED * config.inputs, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x.reshape(-1, self.rows, JOINED * self.config.inputs))
        return y

    def folding(self) -> Folding:
        return Folding(reads=("linear",), width=self.config.inputs, repeats=JOINED)


def tokens(config: ProjectorConfig) -> int:
    if config.rows % JOINED:
        raise CheckpointError(
            f"{KIND} joins {JOINED} embeddings each, and the vision encoder gives {config.rows}",
            hint="a vision encoder of an even number of patches a side: 24 (CLIP at 336), for one",
        )
    return config.rows // JOINED


def tiny() -> Projector:
    torch.manual_seed(0)
    return Projector(ProjectorConfig(inputs=32, hidden=64, grid=4))
