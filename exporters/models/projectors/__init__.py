"""Projectors: one file each, and what they have in common.

A file's `KIND` is its `mm_projector_type`; `{depth}` in it stands for a number. One with settings of its own has a
config that extends ProjectorConfig, and `from_config(shape, told)`, which reads them from a checkpoint's config.json.
They are listed in `SETTINGS`, with usual values: dialects refuse keys that nobody reads. `Projector` is the module,
with `folding()` (`exporters.models.folding`). One whose parameters are not the checkpoint's tensors as they stand says
by `transforms(config)` what is done with which (`exporters.models.source`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from types import ModuleType
from typing import Any

from edge import plugins
from edge.errors import CheckpointError
from exporters.models.sizes import MOST_SIZE

SECTION = "projector_config"


@dataclass(frozen=True)
class ProjectorConfig:
    """What every projector is told: where it stands."""

    inputs: int  # width of the tower
    hidden: int  # width of the decoder
    grid: int  # patches a side; the tower gives grid * grid rows
    cls: bool = False  # and the class token's row before them
    depth: int = 1  # linear layers, where KIND counts them
    skipped: int = 0  # the first rows of the grid, which the tower leaves out

    @property
    def rows(self) -> int:
        """What the tower gives."""
        return self.grid**2 + self.cls - self.skipped


def find(kind: str) -> tuple[ModuleType, int]:
    """The projector of an `mm_projector_type`, and its depth. Raises CheckpointError that lists the legal ones."""
    kinds = {name: plugins.facts(__name__, name)["KIND"] for name in plugins.names(__name__)}
    for name, template in kinds.items():
        if match := re.fullmatch(re.escape(template).replace(r"\{depth\}", r"(?P<depth>[1-9]\d?)"), kind):
            return plugins.load(__name__, name), int(match.groupdict().get("depth", 1))
    raise CheckpointError(f"no projector for mm_projector_type {kind!r}", hint="one of: " + ", ".join(kinds.values()))


def configure(module: ModuleType, shape: ProjectorConfig, told: Mapping[str, Any]) -> ProjectorConfig:
    """The config of a projector in a place of this shape, with its own settings as the checkpoint's config has them.
    Raises CheckpointError on settings that it cannot have."""
    if not hasattr(module, "from_config"):
        return shape
    config: ProjectorConfig = module.from_config(shape, told)
    return config


def settings(module: ModuleType) -> Mapping[str, Any]:
    """The keys of a checkpoint's config that it reads, with usual values."""
    found: Mapping[str, Any] = getattr(module, "SETTINGS", {})
    return found


def count(told: Mapping[str, Any], name: str, most: int = 4096) -> int:
    """A number of things. Raises CheckpointError that names the field, where it is none or far too many."""
    found = told.get(name)
    if type(found) is not int or not 1 <= found <= most:
        raise CheckpointError(f"config.json has {name} {found!r}", hint=f"a whole number from 1 to {most}")
    return found


def section(told: Mapping[str, Any], shape: ProjectorConfig, usual: Mapping[str, Any]) -> dict[str, Any]:
    """`projector_config`, for projectors that Honeybee's code configures so.

    usual: the settings that the projector has, with the values that they have where config.json does not say.
    Raises CheckpointError that names a setting that is unknown, of another kind, or for other widths than `shape`.
    """
    found = told.get(SECTION, {})
    if not isinstance(found, Mapping):
        raise CheckpointError(f"config.json has {SECTION} {found!r}", hint="it must be a JSON object")
    widths = {"encoder_hidden_size": shape.inputs, "output_hidden_size": shape.hidden}
    for name, value in found.items():
        if name in widths and value == widths[name]:
            continue
        if name not in usual:
            expected = f"it must be {widths[name]}" if name in widths else "known: " + ", ".join(usual)
            raise CheckpointError(f"config.json has {name} {value!r} in {SECTION}", hint=expected)
        if type(value) is not type(usual[name]) or (type(value) is int and not 0 <= value <= MOST_SIZE):
            raise CheckpointError(
                f"config.json has {name} {value!r} in {SECTION}", hint=f"it is {usual[name]!r} in published models"
            )
    return {**usual, **{name: value for name, value in found.items() if name in usual}}


def side(queries: int, name: str) -> int:
    """Of a square of so many embeddings. Raises CheckpointError that names the field, where there is none."""
    root = isqrt(queries)
    if queries < 1 or root * root != queries:
        raise CheckpointError(f"config.json has {name} {queries}", hint="a square number: 144, for one")
    return root


def need_grid(config: ProjectorConfig, kind: str) -> None:
    """For projectors that see the rows as a square picture."""
    if config.cls:
        raise CheckpointError(
            f"{kind} cannot place the class token of mm_vision_select_feature 'cls_patch'", hint="it needs 'patch'"
        )
    if config.skipped:
        raise CheckpointError(f"{kind} cannot place rows of a grid whose first is left out", hint="an MLP can")
