"""Equalising before quantising: outlier channels are scaled and shifted into their readers' weights.

A scale for a row, or a tensor, of activations is set by its largest number, and trained models have channels that are
tens or thousands of times larger than the others. Where a module says that a channel can be scaled before a linear
layer and the inverse be taken up behind it (`exporters.models.folding`), its size moves from the activations into the
weights, which costs nothing at run time (SmoothQuant, arXiv 2211.10438; AWQ, 2306.00978; RepQ-ViT, 2212.08254).

How much moves is measured, not set: of a few candidates for each fold the one that brings its readers' outputs nearest
to float32, both sides rounded as the scheme rounds them. A fold without a clear gain is left as it is, and so a model
without outliers is, bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from exporters.models import folding
from exporters.models.folding import Fold
from exporters.quantization import rounding
from exporters.quantization.observed import Inputs
from exporters.quantization.rounding import Rounding
from exporters.quantization.threads import each

CLEAR = 1.5  # how many times smaller an error must become, as the root of its mean square
# How much of a channel's size moves into the weights: s = |x|^alpha / |w|^(1 - alpha), as SmoothQuant has it.
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
USUAL = (0, 1)  # powers of two by which a scale may differ from the others' and is not made: then only outliers change
ROWS = 256  # of a layer's weight that the error is measured on
FEW = 32  # of them that tell whether anything is gained: without outliers nothing is, and the search ends there
LIKE = 1.25  # how far the few may be from the others in that
# What a parameter may become: float16 holds it, with all its digits.
LARGEST, SMALLEST = 2.0**14, 2.0**-12
_FLOOR = 2.0**-20  # of the largest: a column that is nothing weighs as if it were so much


class Choice(NamedTuple):
    """What is done to a fold's channels, float32 `[channels]`. Scales are powers of two: no weight loses a digit."""

    scale: Tensor
    shift: Tensor | None


@torch.no_grad()
def equalize(
    module: nn.Module, seen: Mapping[str, Inputs], how: Rounding, importance: Mapping[str, Tensor] | None = None
) -> dict[Fold, Choice]:
    """Change `module`'s weights in place, not its function; gives what was done.

    seen: by the path of each fold's first reader (`readers`).
    importance: what will guide the rounding of 4-bit weights, by the weight's name (`following` changes it, too).
    """
    made: dict[Fold, Choice] = {}
    # Linear layers first: rows of theirs that are outliers hide the others, where one scale is for all.
    for fold in sorted(folding.folding(module).folds, key=lambda fold: not _is_linear(module, fold.source)):
        matters = (importance or {}).get(f"{fold.readers[0]}.weight")
        if choice := _best(module, fold, seen[fold.readers[0]], how, matters):
            folding.apply(module, fold, choice.scale, choice.shift)
            made[fold] = choice
    return made


def _is_linear(module: nn.Module, path: str) -> bool:
    return isinstance(module.get_submodule(path), nn.Linear)


def readers(module: nn.Module) -> list[str]:
    """The layers whose inputs `equalize` wants to have seen."""
    return [fold.readers[0] for fold in folding.folding(module).folds]


def following(importance: Mapping[str, Tensor], made: Mapping[Fold, Choice]) -> dict[str, Tensor]:
    """The mean squares of what each weight is multiplied with, after that. Shifted folds must not be among them."""
    found = dict(importance)
    for fold, choice in made.items():
        for name in (f"{reader}.weight" for reader in fold.readers):
            if name in found:
                assert choice.shift is None, fold
                found[name] = found[name] / fold.read(choice.scale).square()
    return found


class _Problem(NamedTuple):
    """One fold, as it is measured: what its readers are given, and some rows of each one's weight."""

    fold: Fold
    inputs: Inputs
    weights: list[Tensor]
    how: Rounding
    importance: Tensor | None

    def error(self, choice: Choice | None) -> float:
        """The mean square of each output's error, over that of the output; the sum of the readers' means."""
        fold, inputs = self.fold, self.inputs
        columns = None if choice is None else fold.read(choice.scale)
        shift = None if choice is None or choice.shift is None else fold.read(choice.shift)

        def moved(x: Tensor) -> Tensor:
            x = x if shift is None else x - shift
            return x if columns is None else x / columns

        given = zip(inputs.rows, inputs.least, inputs.largest, strict=True)
        rows = [rounding.activations(moved(x), moved(a), moved(b), self.how.activations) for x, a, b in given]
        exact, rounded, total = torch.cat(inputs.rows), torch.cat(rows), 0.0
        matters = self.importance if self.importance is None or columns is None else self.importance / columns.square()
        for weight in self.weights:
            stored = rounding.weights(weight if columns is None else weight * columns, self.how.weights, matters)
            wanted = exact @ weight.T
            found = rounded @ stored.T
            if shift is not None:
                found += weight @ shift
            # Of each output by itself: a few large ones may be outliers, which the next fold makes small.
            energy = wanted.square().mean(dim=0).clamp(min=torch.finfo().tiny)
            total += float(((found - wanted).square().mean(dim=0) / energy).mean())
        return total


def _best(module: nn.Module, fold: Fold, inputs: Inputs, how: Rounding, importance: Tensor | None) -> Choice | None:
    """None where nothing is clearly better than what is there."""
    choices = [*_different(_candidates(module, fold, inputs))]
    if not choices:
        return None
    for count, clear in ((FEW, CLEAR / LIKE), (ROWS, CLEAR)):
        weights = [_some(weight, count) for weight in _weights(module, fold)]
        problem = _Problem(fold, inputs, weights, how, importance)
        *errors, before = each(problem.error, [*choices, None])
        if min(errors) * clear**2 > before:
            return None
    return choices[errors.index(min(errors))]


def _different(choices: Iterable[Choice]) -> Iterator[Choice]:
    """Each once, and none that changes nothing: without outliers few are left."""
    known: set[tuple[bytes, bytes]] = set()
    for choice in choices:
        key = (choice.scale.numpy().tobytes(), b"" if choice.shift is None else choice.shift.numpy().tobytes())
        if key not in known and not (choice.shift is None and bool((choice.scale == 1).all())):
            known.add(key)
            yield choice


def _some(weight: Tensor, count: int) -> Tensor:
    return weight[torch.linspace(0, len(weight) - 1, min(count, len(weight))).long()]


def _candidates(module: nn.Module, fold: Fold, inputs: Inputs) -> Iterator[Choice]:
    source = fold.rows(_largest_of_each(module.get_parameter(f"{fold.source}.weight"), rows=True))
    columns = torch.stack([_largest_of_each(weight, rows=False) for weight in _weights(module, fold)])
    weighs = fold.given(columns.amax(dim=0))
    least = -fold.given(-torch.stack(inputs.least).amin(dim=0))
    largest = fold.given(torch.stack(inputs.largest).amax(dim=0))
    for shift in (None, torch.where(source > 0, (least + largest) / 2, 0)):
        size = torch.maximum(largest, -least)
        if shift is not None:
            if not folding.can_shift(module, fold) or not _fits(module, fold, shift):
                return
            size = torch.where(source > 0, (largest - least) / 2, size)
            yield Choice(torch.ones_like(size), shift)
        for strength, usual in product(STRENGTHS, USUAL) if fold.scales else ():
            yield Choice(_scale(size, weighs, source, strength, usual), shift)


def _weights(module: nn.Module, fold: Fold) -> list[Tensor]:
    return [module.get_parameter(f"{path}.weight") for path in fold.readers]


def _largest_of_each(weight: Tensor, rows: bool) -> Tensor:
    """Of the magnitudes of a weight's rows or columns; a norm has one number a row."""
    return torch.linalg.vector_norm(weight.view(len(weight), -1), torch.inf, dim=1 if rows else 0)


def _fits(module: nn.Module, fold: Fold, shift: Tensor) -> bool:
    """Whether the readers' biases can take it."""
    added = [weight @ fold.read(shift) for weight in _weights(module, fold)]
    return all(float(bias.abs().max()) <= LARGEST for bias in added)


def _scale(size: Tensor, weighs: Tensor, source: Tensor, strength: float, usual: float) -> Tensor:
    """`[channels]`, the usual channel 1. One that its source does not give, or that is always zero, is left alone.

    size, weighs, source: the largest magnitude of each channel, of the columns that read it and of the rows that give
        it.
    strength, usual: as in STRENGTHS and USUAL.
    """
    alive = (size > 0) & (source > 0)
    if not bool(alive.any()):
        return torch.ones_like(size)
    floor = weighs.max().clamp(min=torch.finfo().tiny) * _FLOOR
    wanted = size**strength / weighs.clamp(min=floor) ** (1 - strength)
    wanted = (wanted / wanted[alive].median()).clamp(min=torch.finfo().tiny).log2().round()
    alive &= wanted.abs() > usual
    most = torch.minimum(LARGEST / weighs, source / SMALLEST).log2().floor().clamp(min=0)
    least = (source / LARGEST).log2().ceil().clamp(max=0)
    return torch.where(alive, torch.exp2(wanted.clamp(min=least, max=most)), 1)
