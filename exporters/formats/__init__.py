"""One file for each format, named after what it writes.

A format has the literal `SCHEMES` (role -> scheme -> tolerance; `edge.recipes` has the bytes of a weight), and
`write(component, module, scheme, folder, progress, importance, checkpoint=…)`, after which the module holds the weights
as they were stored, and so computes the reference of what was written. A role that is no component's own is written
beside the parts, for other people's tools, and may take options of its own. A format that has the literal `SAMPLES`, a
number, is given so many inputs of the module as `samples=…`: pixel values, or rows.

`bounds(component, scheme, tensor_types)` names the parameters that a scheme stores in, or with scales of, a type
narrower than float32: each with the magnitude from which on it would become another number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from edge.types import TensorSpec

# What rounds to infinity in half precision, bfloat16 and float32.
HALF, BRAIN, SINGLE = 65520.0, (2 - 2**-8) * 2.0**127, (2 - 2**-24) * 2.0**127
FITTED = 1.5  # how much larger a 4-bit scale may be for being fitted (`exporters.quantization.integers`)

Progress = Callable[[float], None]  # the share that is done


class Written(NamedTuple):
    files: tuple[Path, ...]  # the first is the one to open
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    details: Mapping[str, Any] = MappingProxyType({})  # what only this format has, for the manifest


def products(module: nn.Module, bound: float) -> dict[str, float]:
    """The same bound for the weight of every linear layer."""
    return {f"{name}.weight": bound for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
