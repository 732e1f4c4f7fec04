"""What rounding costs each linear, measured on real activations, and what it costs all of them, simulated in torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporters.models.layers import Linear
from exporters.quantization import integers
from exporters.quantization.activations import Kind, rounded

_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Rounding:
    """How a linear is computed: what its weight `[N, K]` becomes, and how its inputs are rounded."""

    weight: Callable[[Tensor], Tensor]
    activations: Kind


@dataclass(frozen=True)
class LinearCost:
    """What rounding costs one linear while all before it compute in float32."""

    outliers: float  # the largest input channel over the median one, by their largest magnitudes
    # Scheme -> squared error of an output row over the row's square, the mean of all rows: norms make rows of one size
    # again, so an error in a small row counts as much as one in a massive row.
    errors: Mapping[str, float]


# A scheme's name -> what it makes of a weight: to choose by, not to store. The formats store the same numbers up to the
# width of a scale.
WEIGHTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "w8a8": lambda weight: integers.per_channel(weight).dequantized(),
    "w8": lambda weight: integers.blockwise(weight, 8).dequantized(),
    "q8_0": lambda weight: integers.blockwise(weight, 8).dequantized(),
    "fp16": lambda weight: weight.half().float(),
    "f16": lambda weight: weight.half().float(),
    "bf16": lambda weight: weight.bfloat16().float(),
    "fp32": lambda weight: weight,
    "f32": lambda weight: weight,
}
# Of few bits, in blocks of 32. llama.cpp's mixes hold several kinds: the usual one is taken.
FEW_BITS: Mapping[str, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys(
        ("w4", "8da4w", "pal4", "q4_0", "q4_k_m", "q4_k_s", "iq4_nl", "iq4_xs", "q3_k_m"),
        lambda weight: integers.blockwise(weight, 4).dequantized(),
    ),
    **dict.fromkeys(("q5_k_m", "q5_k_s"), lambda weight: _blocks(weight, 5)),
    "q6_k": lambda weight: _blocks(weight, 6),
}


def _blocks(weight: Tensor, bits: int) -> Tensor:
    columns, most = weight.shape[1], 2 ** (bits - 1) - 1
    blocks = F.pad(weight, (0, -columns % integers.BLOCK)).unflatten(1, (-1, integers.BLOCK))
    scales = (blocks.abs().amax(-1, keepdim=True) / most).clamp(min=_TINY)
    return ((blocks / scales).round() * scales).flatten(1)[:, :columns]


def linears(module: nn.Module) -> dict[str, Linear]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, Linear)}


@torch.inference_mode()
def measure(
    module: nn.Module, run: Callable[[], object], roundings: Callable[[str], Mapping[str, Rounding]]
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
            for scheme, rounding in ways.items():
                off = F.linear(rounded(x, rounding.activations), rounding.weight(layer.weight), layer.bias) - exact
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
def simulated(module: nn.Module, roundings: Mapping[str, Rounding]) -> Iterator[None]:
    """Within it the linears that `roundings` names are computed with rounded weights and activations."""
    layers = linears(module)
    changed = [layers[name] for name in roundings]
    try:
        for layer, rounding in zip(changed, roundings.values(), strict=True):
            cast("Any", layer).forward = _rounding_forward(layer, rounding)
        yield
    finally:
        for layer in changed:
            layer.__dict__.pop("forward", None)


def _rounding_forward(layer: Linear, rounding: Rounding) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(rounded(x, rounding.activations), rounding.weight(layer.weight), layer.bias)


def _ratio(peaks: Tensor) -> float:
    return float(peaks.max() / peaks.median().clamp(min=_TINY))
