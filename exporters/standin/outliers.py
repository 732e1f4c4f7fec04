"""Outlier channels as trained models have them, by factors that their readers take back: the same function."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from edge.errors import UsageError
from exporters.models.component import Component
from exporters.models.folding import Fold, folding
from exporters.standin.planting import Edit, Edits


def edits(component: Component, factor: float, channels: int, generator: torch.Generator) -> Edits:
    """Some channels of every fold of the component's module become `factor` times as large: what norms give, and what
    linear layers give to linear ones (values to the output of attention, the half of a gated layer that is not
    activated).

    Nothing is read. Raises UsageError where a fold has not so many channels.
    """
    module, found = component.skeleton(), defaultdict[str, list[Edit]](list)
    for fold in folding(module).folds:
        if not fold.scales:
            continue
        count = len(fold.rows(module.get_parameter(f"{fold.source}.weight")))
        if channels > count:
            raise UsageError(f"{channels} outlier channels, and {fold.source} has {count}", hint=f"{count} or fewer")
        factors = torch.ones(count)
        factors[torch.randperm(count, generator=generator)[:channels]] = factor
        for kind in ("weight", "bias"):
            if getattr(module.get_submodule(fold.source), kind, None) is not None:
                found[f"{fold.source}.{kind}"].append(_rows(fold, factors))
        for reader in fold.readers:
            found[f"{reader}.weight"].append(_columns(1 / fold.read(factors)))
    return dict(found)


def _rows(fold: Fold, factors: Tensor) -> Edit:
    def edit(parameter: Tensor) -> None:
        rows = fold.rows(parameter)
        rows.mul_(factors.view(-1, *(1,) * (rows.ndim - 1)))

    return edit


def _columns(factors: Tensor) -> Edit:
    def edit(parameter: Tensor) -> None:
        parameter.mul_(factors)

    return edit
