"""Equalising as an export does it: samples go through a component once, and by what they showed its weights change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from edge.recipes import Target
from exporters import reference
from exporters.formats import NOTHING
from exporters.models.decoders import LanguageModel
from exporters.quantization import equalize, rounding
from exporters.quantization.observed import Inputs, observe

ROWS = 128  # of what a layer is multiplied with, that errors are measured on


class Looked(NamedTuple):
    """What samples gave, in float32, and what the linears that `equalize` asks about were multiplied with."""

    exact: list[Tensor]
    seen: dict[str, Inputs]


def look(module: reference.Module, samples: Mapping[str, Tensor]) -> Looked:
    """samples: as `reference.outputs` takes them, by what each is called. Raises CheckpointError where a number is not
    finite."""
    exact: list[Tensor] = []

    def through(sample: Tensor) -> None:
        role = "decoder" if isinstance(module, LanguageModel) else "vision encoder"
        exact.append(reference.finite(role, reference.outputs(module, sample)))

    passes = {name: lambda sample=sample: through(sample) for name, sample in samples.items()}
    return Looked(exact, observe(module, equalize.readers(module), passes, ROWS))


def equalised(
    module: reference.Module,
    looked: Looked,
    target: Target,
    importance: Mapping[str, Tensor] = NOTHING,
) -> dict[str, Tensor]:
    """The importance as it is afterwards. The module is the same function in float32; where the target keeps floats, it
    is left alone."""
    how = rounding.of(target.format, target.scheme)
    if not how.integers:
        return dict(importance)
    return equalize.following(importance, equalize.equalize(module, looked.seen, how, importance))
