"""A linear layer's change as the product of two low-rank halves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edge.errors import CheckpointError
from exporters.sources import lora_config
from exporters.sources.lora_config import AGAIN, LoraConfig
from exporters.sources.weights import Stored


@dataclass(frozen=True)
class LowRank:
    """`W + scale · B · A`, computed in float32. With DoRA its rows are brought to the length of `magnitude`."""

    a: Stored  # [r, in]
    b: Stored  # [out, r]
    scale: float
    embedding: bool  # the table is [in, out]
    magnitude: Stored | None  # [out]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        made = (*self.b.shape[:1], *self.a.shape[1:])
        return made[::-1] if self.embedding else made

    def merged(self, weight: Callable[[], Tensor]) -> Tensor:
        change = self.b.read().float() @ self.a.read().float() * self.scale
        made = weight().float() + (change.T if self.embedding else change)
        if self.magnitude:
            made *= (self.magnitude.read().float() / torch.linalg.vector_norm(made, dim=1))[:, None]
        return made

    @classmethod
    def of(cls, module: str, found: Mapping[str, Stored], lora: LoraConfig) -> LowRank:
        """Raises CheckpointError where the halves of a module are not what adapter_config.json says."""
        embedding = "embedding_A" in found
        wanted = {"embedding_A", "embedding_B"} if embedding else {"A", "B"}
        if lora.dora:
            wanted.add("magnitude_vector")
        if set(found) != wanted:
            there, expected = (", ".join(f"lora_{half}" for half in sorted(halves)) for halves in (found, wanted))
            raise CheckpointError(f"the adapter has {there} of {module!r}; expected {expected}", hint=AGAIN)
        if embedding and lora.dora:
            raise CheckpointError(
                f"{lora_config.NAME} has use_dora true, which is not supported of an embedding table: {module!r}",
                hint=lora_config.MERGE,
            )
        a, b = (found[f"embedding_{half}" if embedding else half] for half in "AB")
        rank = lora.rank_of(module)
        if a.shape[:1] != (rank,) or b.shape[1:] != (rank,) or len(a.shape) != 2:
            raise CheckpointError(
                f"the adapter of {module!r} is {list(b.shape)} times {list(a.shape)}, {lora_config.NAME} has r {rank}",
                hint=f"{AGAIN}; convolutions are not merged",
            )
        magnitude = found.get("magnitude_vector")
        if magnitude and magnitude.shape != b.shape[:1]:
            raise CheckpointError(f"lora_magnitude_vector of {module!r} is {list(magnitude.shape)}", hint=AGAIN)
        return cls(a, b, lora.scale(module), embedding, magnitude)
