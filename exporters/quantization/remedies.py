"""Which linears of a component are stored wider than its scheme, so that rounding costs no more than a bound."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from exporters.quantization.sensitivity import LayerRounding, LinearCost, linears, measure, simulated

LIKE = 1.5  # how many times more than another a sample may lose, where no outlier is shown by one and not by the other
_PIECE = 1 << 20  # numbers
Output = Callable[[], Tensor]  # calls the component with one sample


@dataclass(frozen=True)
class Remedies:
    loss: float  # 1 - cosine of the outputs, of the worst sample; simulated
    before: float  # with nothing widened
    costs: Mapping[str, LinearCost] = field(default_factory=dict)  # by linear; empty where nothing asked for them
    widened: Mapping[str, str] = field(default_factory=dict)  # linear -> scheme


@torch.inference_mode()
def settle(
    module: nn.Module,
    samples: Sequence[Output],
    exact: Sequence[Tensor],
    ladder: Sequence[str],
    roundings: Mapping[str, LayerRounding],
    bound: float,
    *,
    explain: bool = False,
) -> Remedies:
    """`exact`: what the samples give now, unrounded; `ladder`: the schemes that a linear may have, the component's own
    first, each dearer than the one before.

    Nothing is widened where the loss is within the bound, well within it on the first sample alone; each linear is
    measured only then if `explain`. Else
    those are widened, a rung at a time, whose outputs are hurt most, until it is; which may be never, and then all
    stand on the last rung.
    """
    narrow = dict.fromkeys(linears(module), roundings[ladder[0]])
    before = loss = _loss(module, samples[:1], exact[:1], narrow)
    if loss > bound / LIKE or explain:
        before = loss = _loss(module, samples, exact, narrow)
    if loss <= bound and not explain:
        return Remedies(loss, before)
    ways = {scheme: roundings[scheme] for scheme in ladder}
    costs = measure(module, lambda: [sample() for sample in samples], lambda _: ways)
    rung = dict.fromkeys(costs, 0)
    while not loss <= bound and (moved := _worst(rung, costs, ladder)):
        rung |= {name: _next(rung[name], costs[name], ladder) for name in moved}
        done = {name: roundings[ladder[at]] for name, at in rung.items()}
        loss = _loss(module, samples, exact, done, enough=bound if _worst(rung, costs, ladder) else math.inf)
    return Remedies(loss, before, costs, {name: ladder[at] for name, at in rung.items() if at})


def _worst(rung: Mapping[str, int], costs: Mapping[str, LinearCost], ladder: Sequence[str]) -> list[str]:
    """The fewest linears that can still be widened and do half of the harm."""
    harm = {name: costs[name].errors[ladder[at]] for name, at in rung.items() if at + 1 < len(ladder)}
    half, taken = sum(harm.values()) / 2, 0.0
    found: list[str] = []
    for name in sorted(harm, key=lambda name: -harm[name]):
        if found and taken >= half:
            break
        taken += harm[name]
        found.append(name)
    return found


def _next(at: int, cost: LinearCost, ladder: Sequence[str]) -> int:
    """The next rung that halves the error at least; a rung that does not would only be paid for."""
    better = (rung for rung in range(at + 1, len(ladder)) if cost.errors[ladder[rung]] <= cost.errors[ladder[at]] / 2)
    return next(better, len(ladder) - 1)


def _loss(
    module: nn.Module,
    samples: Sequence[Output],
    exact: Sequence[Tensor],
    roundings: Mapping[str, LayerRounding],
    *,
    enough: float = math.inf,
) -> float:
    """Of the worst sample; or of the first that loses more than `enough`, or is not finite."""
    losses = []
    with simulated(module, roundings):
        for sample, right in zip(samples, exact, strict=True):
            losses.append(distance(sample(), right))
            if not losses[-1] <= enough:
                return losses[-1]
    return max(losses)


def distance(found: Tensor, right: Tensor) -> float:
    """1 - cosine of the flattened outputs, in float64."""
    product = left = other = 0.0
    # In pieces: logits of every position are hundreds of megabytes, and in float64 twice as many.
    for pair in zip(found.detach().flatten().split(_PIECE), right.detach().flatten().split(_PIECE), strict=True):
        a, b = (piece.double() for piece in pair)
        product, left, other = product + float(a @ b), left + float(a @ a), other + float(b @ b)
    return 1 - product / max(math.sqrt(left) * math.sqrt(other), sys.float_info.min)
