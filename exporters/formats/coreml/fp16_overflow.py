"""Which operations overflow half precision: the largest value of each, measured on samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from exporters.formats.coreml.trace import Run, WithMemory
from exporters.models.attention import GrowingCache
from exporters.models.decoders import LanguageModel

# A quarter of the largest half: what was not measured may be larger than what was.
LIMIT = torch.finfo(torch.float16).max / 4


@torch.inference_mode()
def wide(graph: fx.Graph, module: nn.Module, samples: Sequence[Tensor]) -> dict[str, float]:
    """Nodes whose values are beyond LIMIT, with the largest; samples are what the graph takes."""
    largest: dict[str, float] = {}

    def seen(node: fx.Node, value: object) -> None:
        if isinstance(value, Tensor) and node.op in ("call_function", "call_method", "call_module"):
            largest[node.name] = max(largest.get(node.name, 0.0), float(value.abs().max()))

    root = WithMemory(module) if isinstance(module, LanguageModel) else module
    for sample in samples:
        cache = None
        if isinstance(module, LanguageModel):
            config = module.config
            cache = GrowingCache(config.heads, config.kv_heads, config.rope)
        Run(root, graph, seen, cache).run(sample)
    return {name: value for name, value in largest.items() if not value < LIMIT}
