"""Searches the scheme of each linear layer under a budget: bytes of a bundle, or bytes of memory that it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from edge.errors import UsageError
from edge.recipes import Target, bytes_per_weight
from edge.units import format_size
from exporters import widening
from exporters.models.component import Component
from exporters.quantization.budget import Choice, allocate
from exporters.quantization.sensitivity import layer_rounding, linears, measure
from exporters.reference import Module, outputs
from exporters.widening import Widened

_ATTEMPTS = 8  # to meet a limit of memory, which is not proportional to bytes


@dataclass(frozen=True)
class Budget:
    """Bytes; None: no limit."""

    size: int | None = None  # of all files
    memory: int | None = None  # the predicted peak at a full context

    def over(self, size: int, memory: int) -> int:
        """Bytes above the limit that is missed by most; below zero: what is left."""
        return max(now - limit for now, limit in ((size, self.size), (memory, self.memory)) if limit is not None)


@dataclass(frozen=True)
class Side:
    """A component that is to be stored, and what each of its linear layers may become."""

    component: Component
    target: Target
    choices: Mapping[str, Sequence[Choice]]  # by the layer's weight
    floats: int = 0  # bytes that norms, convolutions and positions take above a weight of the scheme

    @classmethod
    def measured(cls, component: Component, module: Module, samples: Sequence[Tensor], target: Target) -> Side:
        """What each scheme costs each layer of `module`, which holds the checkpoint's weights."""
        ladder = (target.scheme, *widening.ladder(target.format, component.role, target.scheme))
        ways = {scheme: layer_rounding(target.format, scheme) for scheme in ladder}
        costs = measure(module, lambda: [outputs(module, sample) for sample in samples], lambda _: ways)
        numbers = {name: layer.weight.numel() for name, layer in linears(module).items()}
        choices = {
            f"{name}.weight": [
                Choice(scheme, bytes_per_weight(target.format, scheme) * numbers[name], cost.errors[scheme])
                for scheme in ladder
            ]
            for name, cost in costs.items()
        }
        few = sum(
            p.numel() for name, p in module.named_parameters() if name not in choices and "embed_tokens" not in name
        )
        return cls(component, target, choices, int(few * (4 - bytes_per_weight(target.format, target.scheme))))


def search(sides: Sequence[Side], budget: Budget, foreseen: Callable[[Widened], tuple[int, int]]) -> Widened:
    """The choice that loses least within the budget. Errors of layers are taken to add up, and each layer's output to
    matter as much as any other's.

    foreseen: of a choice, the bytes of all files and those of the memory it takes. Raises UsageError where the smallest
    choice is above the budget, with what it would take.
    """
    table = {f"{at}:{weight}": side.choices[weight] for at, side in enumerate(sides) for weight in side.choices}

    def chosen(limit: float) -> dict[str, Choice]:
        return allocate(table, limit=limit)

    def spelled(found: Mapping[str, Choice]) -> Widened:
        return {
            side.component.role: {
                weight: found[f"{at}:{weight}"].scheme
                for weight in side.choices
                if found[f"{at}:{weight}"].scheme != side.target.scheme
            }
            for at, side in enumerate(sides)
        }

    least = chosen(0)
    used = sum(choice.bytes for choice in least.values())
    size, memory = foreseen(spelled(least))
    _require(size, budget.size, "takes", "--target-size")
    _require(memory, budget.memory, "takes, at a full context and as predicted,", "--max-ram")
    spare = -budget.over(size, memory)
    for _ in range(_ATTEMPTS):
        found = spelled(chosen(used + spare))
        if (over := budget.over(*foreseen(found))) <= 0:
            return found
        spare = max(0, spare - over)
    return spelled(least)


def _require(least: int, limit: int | None, does: str, flag: str) -> None:
    if limit is not None and least > limit:
        raise UsageError(
            f"the smallest choice of these schemes {does} {format_size(least)}, more than {format_size(limit)}",
            hint=f"{flag} {format_size(least).replace(' ', '')}, or a smaller --scheme, --format or --context",
        )
