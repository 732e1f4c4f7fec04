"""Write a checkpoint once more, some of its parameters edited: one parameter and one file in memory at a time."""

from __future__ import annotations

import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edge.errors import UsageError
from exporters.models.component import Component
from exporters.sources.checkpoint import Checkpoint, read_json
from exporters.standin.checkpoint import SHARD_BYTES, in_groups, require_new

log = logging.getLogger(__name__)
Edit = Callable[[Tensor], None]  # of a whole parameter, float32, in place
Edits = dict[str, list[Edit]]  # by the parameter's name in its component


class _Piece(NamedTuple):
    """Rows of a parameter that are one tensor of the checkpoint."""

    component: Component
    parameter: str
    first: int
    last: int


class Plan:
    """Edits in the order in which they are made; where there is a module, they are made there at once."""

    def __init__(self, module: nn.Module | None = None) -> None:
        self.edits: Edits = defaultdict(list)
        self._module = module

    def edit(self, name: str, edit: Edit) -> None:
        self.edits[name].append(edit)
        if self._module is not None:
            edit(self._module.get_parameter(name).data)

    def fill(self, name: str, place: Any, value: float | Tensor) -> None:
        def edit(parameter: Tensor) -> None:
            parameter[place] = value

        self.edit(name, edit)


def require(channels: int, hidden: int) -> None:
    """Raises UsageError where `channels` cannot be taken from a residual stream without another model."""
    if channels > hidden // 4:
        raise UsageError(
            f"{channels} massive channels, and the residual stream has {hidden}", hint=f"{hidden // 4} or fewer"
        )


def joined(several: Sequence[Edits]) -> Edits:
    """One after the other."""
    found: Edits = {}
    for edits in several:
        for name, own in edits.items():
            found.setdefault(name, []).extend(own)
    return found


def write(checkpoint: Checkpoint, edits: Sequence[tuple[Component, Edits]], folder: Path) -> None:
    """The checkpoint's folder with its weights edited, in a new folder, float32: halves would lose digits of small
    weights. Raises UsageError where `folder` is not empty or the checkpoint is no folder of its own."""
    weights, own = checkpoint.weights, checkpoint.folder
    if not own.is_dir() or any(file.parent != own for file in weights.files):
        raise UsageError(
            f"the weights of {checkpoint.name!r} are not all in its folder", hint="a folder that holds its vision tower"
        )
    pieces = _pieces(checkpoint, edits)
    wanted = {component.role: changes for component, changes in edits}
    require_new(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(own.iterdir()):
        if file.is_file() and file not in weights.files:
            shutil.copyfile(file, folder / file.name)
    _float32(folder / "config.json")

    @lru_cache(maxsize=1)
    def parameter(role: str, name: str) -> Tensor:
        component = next(component for component, _ in edits if component.role == role)
        made = component.keys[name].load(weights.__getitem__, torch.float32)
        for edit in wanted[role][name]:
            edit(made)
        return made

    def tensor(key: str) -> Tensor:
        if key not in pieces:
            return weights[key].float()
        component, name, first, last = pieces[key]
        return parameter(component.role, name)[first:last].clone()

    shapes = {key: weights.shape(key) for key in weights}
    total = 4 * sum(torch.Size(shape).numel() for shape in shapes.values())
    groups = in_groups(shapes, -(-total // SHARD_BYTES))
    where: dict[str, str] = {}
    for index, names in enumerate(groups, 1):
        name = f"model-{index:05}-of-{len(groups):05}.safetensors" if len(groups) > 1 else "model.safetensors"
        save_file({key: tensor(key) for key in names}, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(names, name)
        log.info("%s: %d tensors", name, len(names))
    if len(groups) > 1:
        index_file = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index_file, indent=2), encoding="utf-8")


def _pieces(checkpoint: Checkpoint, edits: Sequence[tuple[Component, Edits]]) -> dict[str, _Piece]:
    """Of each of the checkpoint's tensors that an edit changes."""
    found: dict[str, _Piece] = {}
    for component, changes in edits:
        for parameter in changes:
            source = component.keys[parameter]
            if source.transform:
                raise UsageError(
                    f"{checkpoint.name!r} keeps {source.names[0]} in another form", hint="another checkpoint"
                )
            rows = accumulate((checkpoint.weights.shape(key)[0] for key in source.names), initial=0)
            for key, (first, last) in zip(source.names, pairwise(rows), strict=True):
                found[key] = _Piece(component, parameter, first, last)
    return found


def _float32(file: Path) -> None:
    told: Mapping[str, object] = read_json(file)
    said = {key: "float32" for key in ("torch_dtype", "dtype") if key in told}
    file.write_text(json.dumps({**told, **said}, indent=2) + "\n", encoding="utf-8")
