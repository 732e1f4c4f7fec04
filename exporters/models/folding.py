"""Where a channel can be scaled before a linear layer, and the inverse taken up behind it, without another function.

What multiplies the outputs of a norm or of a linear layer commutes with all that treats each channel by itself, up to
the linear layers that read it (SmoothQuant, arXiv 2211.10438; AWQ, 2306.00978). Where all that lies between passes a
constant on, a channel can be shifted, too (RepQ-ViT, arXiv 2212.08254). Each family's module says by `folding()` which
of its layers are so related.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

ACTIVATION = "it reads what a nonlinear function gives"
SHARED = "what it reads is read by others, too"
TIED = "its weight is the embedding table's"


@dataclass(frozen=True)
class Fold:
    """Channels that one layer gives, and that only some linear layers read.

    source: path of the norm or linear layer whose outputs they are.
    readers: paths of the linear layers; all read the same tensor.
    first, count: the rows of the source that give them, in a layer that is several matmuls; count 0: all.
    width, repeats: heads of `width` channels are each read `repeats` times in a row, as by grouped queries; width 0:
        every channel is read once.
    scales: whether a factor of a channel can be taken up by its readers.
    shifts: whether a constant of a channel can; the source and all readers need a bias for it.
    """

    source: str
    readers: tuple[str, ...]
    first: int = 0
    count: int = 0
    width: int = 0
    repeats: int = 1
    scales: bool = True
    shifts: bool = False

    def read(self, channels: Tensor) -> Tensor:
        """Of each channel of the source -> of each column of a reader."""
        if not self.width:
            return channels
        return channels.view(-1, self.width).repeat_interleave(self.repeats, dim=0).flatten()

    def given(self, columns: Tensor) -> Tensor:
        """The largest of the columns that read each channel."""
        return columns.view(-1, self.repeats, self.width).amax(dim=1).flatten() if self.width else columns

    def rows(self, parameter: Tensor) -> Tensor:
        """Those of the source's weight or bias that give the channels; a view."""
        return parameter[self.first : self.first + self.count] if self.count else parameter

    def within(self, prefix: str) -> Fold:
        """The same in a module that holds this one as `prefix`."""
        readers = tuple(f"{prefix}.{reader}".removesuffix(".") for reader in self.readers)
        return replace(self, source=f"{prefix}.{self.source}", readers=readers)


@dataclass(frozen=True)
class Folding:
    """All linear layers of a module: each is a reader of a fold, unfolded, or reads the module's own input."""

    folds: tuple[Fold, ...] = ()
    unfolded: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # linear layer -> why
    reads: tuple[str, ...] = ()  # linear layers that read the module's input, which nothing else does; "": the module
    gives: Fold | None = None  # the module's output, whose readers are elsewhere
    width: int = 0  # how `reads` read the input, as a Fold's readers do
    repeats: int = 1

    def within(self, prefix: str) -> Folding:
        return Folding(
            tuple(fold.within(prefix) for fold in self.folds),
            {f"{prefix}.{name}": why for name, why in self.unfolded.items()},
            tuple(f"{prefix}.{name}".removesuffix(".") for name in self.reads),
            self.gives.within(prefix) if self.gives else None,
            self.width,
            self.repeats,
        )


class Foldable(Protocol):
    """What every vision encoder, projector and language model is."""

    def folding(self) -> Folding: ...


def folding(module: nn.Module) -> Folding:
    return cast("Foldable", module).folding()


def joined(parts: Iterable[Folding]) -> Folding:
    """Of modules one behind the other; each reads what the one before it gives, and nothing else does."""
    parts = list(parts)
    folds = [fold for part in parts for fold in part.folds]
    unfolded: dict[str, str] = {name: why for part in parts for name, why in part.unfolded.items()}
    for before, after in pairwise(parts):
        if before.gives and after.reads:
            given, read = before.gives, after.reads
            folds.append(replace(given, readers=read, width=after.width, repeats=after.repeats))
        else:
            unfolded |= dict.fromkeys(after.reads, SHARED)
    return Folding(tuple(folds), unfolded, parts[0].reads, parts[-1].gives)


def can_shift(module: nn.Module, fold: Fold) -> bool:
    layers = (module.get_submodule(path) for path in (fold.source, *fold.readers))
    return fold.shifts and all(_bias(layer) is not None for layer in layers)


@torch.no_grad()
def apply(module: nn.Module, fold: Fold, scale: Tensor | None = None, shift: Tensor | None = None) -> None:
    """Channel x becomes (x - shift) / scale, and its readers compute what they did. In place.

    scale, shift: float32 `[channels]`, scale above zero. Powers of two change no digit of any weight.
    """
    source: Any = module.get_submodule(fold.source)
    readers: list[Any] = [module.get_submodule(path) for path in fold.readers]
    if shift is not None:
        fold.rows(source.bias.data).sub_(shift)
        for reader in readers:
            reader.bias.data.add_(reader.weight.data @ fold.read(shift))
    if scale is not None:
        weight = fold.rows(source.weight.data)
        weight.div_(scale.view(-1, *(1,) * (weight.ndim - 1)))
        if (bias := _bias(source)) is not None:
            fold.rows(bias.data).div_(scale)
        columns = fold.read(scale)
        for reader in readers:
            reader.weight.data.mul_(columns)


def _bias(layer: nn.Module) -> nn.Parameter | None:
    bias: nn.Parameter | None = getattr(layer, "bias", None)
    return bias
