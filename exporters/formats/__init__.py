"""One file for each format, named after what it writes.

A format has the literals `SCHEMES` (role -> scheme -> tolerance) and `BYTES_PER_WEIGHT` (scheme -> bytes), and
`write(component, module, scheme, folder, progress, importance, checkpoint=…, samples=…)`, after which the module holds
the weights as they were stored, and so computes the reference of what was written. `samples` are inputs of the module:
pixel values, or rows. A role that is no component's own is written
beside the parts, for other people's tools.
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
