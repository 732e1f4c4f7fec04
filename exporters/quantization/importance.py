"""Which columns of a weight matter: the mean square of what they are multiplied with, over calibration conversations.

An error of the weight there is an error of the product (as in llama.cpp's importance matrix); the sequences are those
of the model in use, with the picture's rows among the tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from edge.errors import CheckpointError
from exporters.models.attention import GrowingCache
from exporters.models.decoders import LanguageModel
from exporters.quantization.observed import watching


@torch.inference_mode()
def measure(decoder: LanguageModel, sequences: Iterable[Tensor]) -> dict[str, Tensor]:
    """Sequences of rows `[1, S, hidden]` -> weight name -> `[columns]` float32. Raises CheckpointError on what is not
    finite, which would hide in the rounding that it guides."""
    config, sums = decoder.config, dict[str, tuple[Tensor, int]]()

    def seen(path: str, rows: Tensor) -> None:
        total, count = sums.get(f"{path}.weight", (torch.zeros(rows.shape[1]), 0))
        sums[f"{path}.weight"] = total + rows.square().sum(dim=0), count + len(rows)

    with watching(decoder, seen):
        for rows in sequences:
            decoder(rows, GrowingCache(config.heads, config.kv_heads, config.rope))
    for name, (total, _) in sums.items():
        if not bool(total.isfinite().all()):
            raise CheckpointError(
                f"what the decoder multiplies with {name} is NaN or infinite on the calibration conversations",
                hint="its values outgrow float32: was the training stable? Without --calib nothing is measured",
            )
    return {name: total / max(count, 1) for name, (total, count) in sums.items()}
