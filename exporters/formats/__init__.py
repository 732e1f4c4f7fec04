"""One file for each format, named after what it writes.

A format has the literal `SCHEMES` (role -> scheme -> tolerance; `edge.recipes` has the bytes of a weight), and
`write(component, module, scheme, folder, progress, importance, checkpoint=…)`, after which the module holds the weights
as they were stored, and so computes the reference of what was written. A role that is no component's own is written
beside the parts, for other people's tools, and may take options of its own. A format that has the literal `SAMPLES`, a
number, is given so many inputs of the module as `samples=…`: pixel values, or rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from edge.types import TensorSpec

Progress = Callable[[float], None]  # the share that is done


class Written(NamedTuple):
    files: tuple[Path, ...]  # the first is the one to open
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    details: Mapping[str, Any] = MappingProxyType({})  # what only this format has, for the manifest
