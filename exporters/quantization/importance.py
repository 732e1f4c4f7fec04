"""Which columns of a weight matter: the mean square of what they are multiplied with, over calibration conversations.

An error of the weight there is an error of the product (as in llama.cpp's importance matrix); the sequences are those
of the model in use, with the picture's rows among the tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edge.errors import CheckpointError
from exporters.models.attention import GrowingCache
from exporters.models.decoders import LanguageModel
from exporters.models.layers import Linear


@torch.inference_mode()
def measure(decoder: LanguageModel, sequences: Iterable[Tensor]) -> dict[str, Tensor]:
    """Sequences of rows `[1, S, hidden]` -> weight name -> `[columns]` float32. Raises CheckpointError on what is not
    finite, which would hide in the rounding that it guides."""
    config = decoder.config
    with _watching(decoder) as sums:
        for rows in sequences:
            decoder(rows, GrowingCache(config.heads, config.kv_heads, config.rope))
    for name, (total, _) in sums.items():
        if not bool(total.isfinite().all()):
            raise CheckpointError(
                f"what the decoder multiplies with {name} is NaN or infinite on the calibration conversations",
                hint="its values outgrow float32: was the training stable? Without --calib nothing is measured",
            )
    return {name: total / max(count, 1) for name, (total, count) in sums.items()}


@contextmanager
def _watching(module: nn.Module) -> Iterator[dict[str, tuple[Tensor, int]]]:
    sums: dict[str, tuple[Tensor, int]] = {}

    def watch(name: str, layer: Linear) -> torch.utils.hooks.RemovableHandle:
        def seen(_: nn.Module, inputs: tuple[Tensor]) -> None:
            rows = inputs[0].reshape(-1, layer.in_features)
            total, count = sums.get(name, (torch.zeros(layer.in_features), 0))
            sums[name] = total + rows.square().sum(dim=0), count + len(rows)

        return layer.register_forward_pre_hook(seen)

    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, Linear)]
    handles = [watch(f"{name}.weight", layer) for name, layer in layers]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()
