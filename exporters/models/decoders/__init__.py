"""Language models: one file for each family, and what they have in common.

A family's `KIND` is its name, and `GATED` tells whether its feed-forward layers have a gate beside the up projection;
`from_config(config)` reads its sizes, `keys(config)` names the tensors of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from exporters.models.attention import Attend, Rope


@dataclass(frozen=True)
class DecoderConfig:
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False  # the head is the embedding table

    @property
    def rope(self) -> Rope:
        return Rope(self.head_dim, self.rope_theta, self.rope_scaling)


class LanguageModel(nn.Module):
    """`inputs_embeds` `[B, S, hidden]` -> logits of the last position `[B, 1, vocab]`, or of all, float32.

    A family computes with `exporters.models.layers` and `exporters.models.ops`, and leaves positions and memory to
    `attend`: so it needs no code of its own in any format.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab, config.hidden)

    def forward(self, inputs_embeds: Tensor, attend: Attend, everywhere: bool = False) -> Tensor:
        raise NotImplementedError
