"""Linear layers with GELU between, the projector of LLaVA-1.5 (`mm_projector_type: mlp2x_gelu`; arXiv 2310.03744)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from edge.errors import CheckpointError
from exporters.models.folding import ACTIVATION, Fold, Folding
from exporters.models.layers import Activation, Linear
from exporters.models.projectors import ProjectorConfig

KIND = "mlp{depth}x_gelu"
# transformers' names -> ours; the same function under two names is one here.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}


@dataclass(frozen=True)
class Config(ProjectorConfig):
    activation: str = "gelu"
    bias: bool = True


def from_config(shape: ProjectorConfig, told: Mapping[str, Any]) -> Config:
    """`projector_hidden_act` and `multimodal_projector_bias`, as transformers' LlavaConfig names and presets them.

    Raises CheckpointError that names the field.
    """
    act, bias = told.get("projector_hidden_act", "gelu"), told.get("multimodal_projector_bias", True)
    if not isinstance(act, str) or act not in ACTIVATIONS:
        raise CheckpointError(
            f"projector_hidden_act {act!r} is not supported", hint="one of: " + ", ".join(ACTIVATIONS)
        )
    if not isinstance(bias, bool):
        raise CheckpointError(f"multimodal_projector_bias is {bias!r}", hint="true or false")
    return Config(**asdict(shape), activation=ACTIVATIONS[act], bias=bias)


class Projector(nn.Sequential):
    """`[B, N, inputs]` -> `[B, N, hidden]` float32. Of a shape alone it is LLaVA-1.5's."""

    def __init__(self, config: ProjectorConfig) -> None:
        own = config if isinstance(config, Config) else from_config(config, {})
        layers: list[nn.Module] = [Linear(own.inputs, own.hidden, bias=own.bias)]
        for _ in range(own.depth - 1):
            layers += [Activation(own.activation), Linear(own.hidden, own.hidden, bias=own.bias)]
        super().__init__(*layers)
        self.config = own

    def folding(self) -> Folding:
        behind = [str(2 * index) for index in range(1, self.config.depth)]
        if self.config.activation != "relu":
            return Folding(unfolded=dict.fromkeys(behind, ACTIVATION), reads=("0",))
        # A ReLU of what is scaled is the scaled ReLU.
        return Folding(tuple(Fold(str(int(name) - 2), (name,)) for name in behind), reads=("0",))


def tokens(config: ProjectorConfig) -> int:
    return config.rows


def tiny() -> Projector:
    torch.manual_seed(0)
    return Projector(ProjectorConfig(inputs=32, hidden=64, grid=4, depth=2))
