"""Judges a component: before a format writes it, which of its linears the scheme would hurt too much; afterwards, what
storing it cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from edge.errors import ParityError
from edge.recipes import Target
from exporters import widening
from exporters.models.decoders import LanguageModel
from exporters.quantization.activations import Kind, rounding
from exporters.quantization.remedies import Remedies, distance, settle
from exporters.quantization.rounding import FEW_BITS
from exporters.quantization.rounding import of as rounding_of
from exporters.quantization.sensitivity import LayerRounding, LinearCost, layer_rounding, linears, measure
from exporters.reference import Module, outputs

# 1 - cosine of a component's outputs that rounding its activations and 8-bit weights may cost before linears are
# widened. Models without outliers stay well below: BENCHMARKS.md has both.
HELD = {"vision": 2e-4, "decoder": 1e-3}
# What a component may lose, 1 - cosine to fp32, before an export is refused: twice what random weights, which nobody
# trained to bear it, lose in four bits (0.07). The demo loses 0.007 at most (BENCHMARKS.md).
MAX_LOSS = 0.15
WORST = 3  # linears that a refusal names


@dataclass(frozen=True)
class Cost:
    """What storing a component and computing it in its format costs."""

    loss: float  # 1 - cosine to fp32 of the worst sample's outputs
    samples: int
    remedies: Remedies | None  # None: its kernels round no activations, and nobody asked
    widened: Mapping[str, str] = field(default_factory=dict)  # a linear layer's weight -> its scheme

    def to_json(self) -> dict[str, Any]:
        """With each linear that was measured: its outliers, and what its own rounding costs."""
        found: dict[str, Any] = {"loss": self.loss, "samples": self.samples, "widened": dict(self.widened)}
        if self.remedies:
            found["linears"] = {
                name: {"outliers": cost.outliers, "errors": dict(cost.errors)}
                for name, cost in self.remedies.costs.items()
            }
        return found


class Judge:
    """Holds what a component computes in fp32 to what it will compute as its format stores it."""

    def __init__(
        self,
        role: str,
        module: Module,
        samples: Sequence[Tensor],
        exact: Sequence[Tensor],
        target: Target,
        widened: Mapping[str, str] | None = None,
        *,
        explain: bool = False,
    ) -> None:
        """Before the format writes it: the module holds the checkpoint's weights.

        samples, exact: what it is judged by, and what float32 makes of each (`reference.outputs`).
        widened: a linear layer's weight -> its scheme, where that is settled; None: it is settled here.
        """
        self._module, self._samples, self._exact, self._target = module, samples, exact, target
        ladder = [target.scheme, *widening.ladder(target.format, role, target.scheme)]
        held = HELD["decoder" if isinstance(module, LanguageModel) else "vision"]
        bound = held if widened is None else math.inf
        how = {scheme: _rounding(target.format, scheme) for scheme in ladder}
        self.rounded: list[Tensor] = []  # as stored and computed by kernels; after `cost`
        self.rounds = how[target.scheme].activations != "none"
        self.together = any(one.activations == "tensor" for one in how.values())  # positions have one scale
        self.remedies: Remedies | None = None
        if (self.rounds and widened is None) or explain:
            calls = [partial(outputs, module, sample) for sample in samples]
            self.remedies = settle(module, calls, exact, ladder, how, bound, explain=explain)
        found = self.remedies.widened if self.remedies else {}
        # A linear layer's weight -> the scheme that it is to be stored in, where that is not the target's.
        self.widened = {f"{name}.weight": scheme for name, scheme in found.items()} if widened is None else widened

    def rounding(self) -> AbstractContextManager[None]:
        """Within it the module's activations are rounded as kernels do."""
        return rounding(self._module, {name: self._kind(name) for name in linears(self._module)})

    def cost(self) -> Cost:
        """After the format has written it: the module holds the weights as they are stored."""
        with self.rounding():
            self.rounded = [outputs(self._module, sample) for sample in self._samples]
        found = [distance(one, exact) for one, exact in zip(self.rounded, self._exact, strict=True)]
        return Cost(max(found), len(found), self.remedies, self.widened)

    def require(self, cost: Cost, bound: float, role: str, reload: Callable[[], Module]) -> None:
        """Raises ParityError that names the linears that lose most, where the cost is above the bound."""
        if cost.loss <= bound:
            return
        rows = [
            f"\n  {name}: loses {max(found.errors.values()):.2g} of its output; its largest input channel is "
            f"{found.outliers:.0f} times the median"
            for name, found in self._worst(reload()).items()
        ]
        raise ParityError(
            f"quantising costs the {role} {cost.loss:.4g} (1 - cosine to fp32, the worst of {cost.samples}), more than "
            f"{bound:.4g}; most of it here:" + "".join(rows),
            hint=f"--scheme {role}=SCHEME with a wider one, or --max-loss {cost.loss * 1.05:.2g} to have it so",
        )

    def _worst(self, original: Module) -> dict[str, LinearCost]:
        """The linears that were hurt most, the worst first; `original` holds the checkpoint's weights."""
        stored = linears(self._module)

        def written(name: str) -> dict[str, LayerRounding]:
            return {self._scheme(name): LayerRounding(lambda _: stored[name].weight, self._kind(name))}

        costs = measure(original, lambda: [outputs(original, sample) for sample in self._samples], written)
        order = sorted(costs, key=lambda name: -max(costs[name].errors.values()))
        return {name: costs[name] for name in order[:WORST]}

    def _scheme(self, linear: str) -> str:
        return self.widened.get(f"{linear}.weight", self._target.scheme)

    def _kind(self, linear: str) -> Kind:
        return rounding_of(self._target.format, self._scheme(linear)).activations


def _rounding(format: str, scheme: str) -> LayerRounding:
    """Weights of few bits are taken as they are: their own rounding costs far more, whatever activations are."""
    how = rounding_of(format, scheme)
    return (
        LayerRounding(lambda weight: weight, how.activations)
        if how.weights in FEW_BITS
        else layer_rounding(format, scheme)
    )
