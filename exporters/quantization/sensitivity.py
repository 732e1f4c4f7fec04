"""What rounding costs each linear, measured on real activations, and what it costs all of them, simulated in torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporters.models.layers import Linear
from exporters.quantization import rounding
from exporters.quantization.activations import Kind, rounded

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class LayerRounding:
    """How one linear is computed: what its weight `[N, K]` becomes, and how its inputs are rounded."""

    weight: Callable[[Tensor], Tensor]
    activations: Kind


@dataclass(frozen=True)
class LinearCost:
    """What rounding costs one linear while all before it compute in float32."""

    outliers: float  # the largest input channel over the median one, by their largest magnitudes
    # Scheme -> squared error of an output row over the row's square, the mean of all rows: norms make rows of one size
    # again, so an error in a small row counts as much as one in a massive row.
    errors: Mapping[str, float]


def layer_rounding(format: str, scheme: str) -> LayerRounding:
    """As a format stores and computes a linear in a scheme."""
    how = rounding.of(format, scheme)
    return LayerRounding(partial(rounding.weights, kind=how.weights), how.activations)


def linears(module: nn.Module) -> dict[str, Linear]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, Linear)}


@torch.inference_mode()
def measure(
    module: nn.Module, run: Callable[[], object], roundings: Callable[[str], Mapping[str, LayerRounding]]
) -> dict[str, LinearCost]:
    """While `run` calls the module: what each rounding (by scheme, of a linear's name) costs each linear that is
    called. A weight is rounded anew in each call, so that no second model is held."""
    peaks: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    lost: dict[str, dict[str, float]] = {}

    def watch(name: str, layer: Linear) -> Any:
        ways = roundings(name)

        def seen(_: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0]
            peak = x.abs().reshape(-1, layer.in_features).amax(dim=0)
            peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak
            exact = F.linear(x, layer.weight, layer.bias)
            size = exact.square().sum(dim=-1).clamp(min=_TINY)
            rows[name] = rows.get(name, 0) + size.numel()
            sums = lost.setdefault(name, dict.fromkeys(ways, 0.0))
            for scheme, how in ways.items():
                off = F.linear(rounded(x, how.activations), how.weight(layer.weight), layer.bias) - exact
                sums[scheme] += float((off.square().sum(dim=-1) / size).sum())

        return layer.register_forward_pre_hook(seen)

    handles = [watch(name, layer) for name, layer in linears(module).items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: LinearCost(_ratio(peaks[name]), {scheme: sum / rows[name] for scheme, sum in sums.items()})
        for name, sums in lost.items()
    }


@contextmanager
def simulated(module: nn.Module, roundings: Mapping[str, LayerRounding]) -> Iterator[None]:
    """Within it the linears that `roundings` names are computed with rounded weights and activations."""
    layers = linears(module)
    changed = [layers[name] for name in roundings]
    try:
        for layer, how in zip(changed, roundings.values(), strict=True):
            cast("Any", layer).forward = _rounding_forward(layer, how)
        yield
    finally:
        for layer in changed:
            layer.__dict__.pop("forward", None)


def _rounding_forward(layer: Linear, how: LayerRounding) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(rounded(x, how.activations), how.weight(layer.weight), layer.bias)


def _ratio(peaks: Tensor) -> float:
    return float(peaks.max() / peaks.median().clamp(min=_TINY))
