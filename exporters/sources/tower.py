"""Where a checkpoint's vision tower lies: its weights, and the configs that describe it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from edge.errors import CheckpointError
from exporters.models import vision
from exporters.models.component import Component
from exporters.models.vision import VisionConfig
from exporters.sources import adapters, hub, tower_config
from exporters.sources.preprocessor import FILES
from exporters.sources.weights import Weights

log = logging.getLogger(__name__)
# Who publishes encoders on the hub. A checkpoint from elsewhere may name any repository, and the hub is asked with the
# user's token: nobody else's is, unless the user says so.
PUBLISHERS = ("facebook", "google", "laion", "openai")


@dataclass(frozen=True)
class Found:
    component: Component
    family: ModuleType
    config: VisionConfig
    weights: Weights  # the checkpoint's, and the tower's where they lie elsewhere
    ignored: str  # a pattern of names under the tower that are never computed
    folder: Path | None  # where what describes it lies, if not in the checkpoint
    described: tuple[Path, ...]  # the files of that folder that were read, where its weights were not
    left_out: Mapping[str, int]  # sizes that its config does not tell, and their defaults


def find(folder: Path, config: Mapping[str, Any], weights: Weights, given: Path | None) -> Found:
    """The tower in the folder `given`, in the checkpoint, or beside it under the last word of `mm_vision_tower`, or a
    published one of the hub, in this order. Weights and configs are looked for apart: upstream's code reads the config
    where the name leads, wherever the weights lie. What is not in the checkpoint's folder is told."""
    name = config.get("mm_vision_tower")
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"config.json names no vision tower: mm_vision_tower is {name!r}", hint="is it a VLM?")
    module = _module(config, name)
    inside = prefix_of(module, weights)
    prefix, ignored = inside or "", ""
    where: Path | None
    read: tuple[Path, ...] = ()
    if inside is None or (given and (adapters.weight_files(given) or not _describes(given))):
        where = given or _search(folder, name, config)
        other = Weights.open(where)
        if (outside := prefix_of(module, other)) is None:
            hint = f"--vision-tower DIR of a {module.KIND} model"
            raise CheckpointError(f"{str(where)!r} holds no vision tower", hint=hint)
        ignored = re.escape(inside) + ".*|" if inside else ""  # what lies in the checkpoint is replaced
        prefix, weights = outside, weights.merged(other.within(outside))
    elif where := given or _description(module, folder, name, config):
        adapters.refuse(where)
        read = _describes(where)
    tower, left_out = tower_config.read(module, config, where, given is not None, weights, prefix)
    ignored += re.escape(prefix) + f"(?:{module.ignored(tower)})"
    return Found(component(module, tower, prefix), module, tower, weights, ignored, where, read, left_out)


def component(module: ModuleType, config: VisionConfig, prefix: str) -> Component:
    return Component("vision", partial(module.Tower, config), module.keys(config, prefix))


def prefix_of(module: ModuleType, weights: Weights) -> str | None:
    """What stands before the tower's names, as in `model.vision_tower.vision_tower.vision_model.`"""
    own = re.compile(rf"(.*\.|)(?:{module.MARKS})(?:\..*|)")
    found = (own.fullmatch(name) for name in weights if "text_model." not in name)
    return next((match[1] for match in found if match), None)


def _module(config: Mapping[str, Any], name: str) -> ModuleType:
    """The family that the checkpoint names, else the tower's name, else its config."""
    kinds = vision.kinds()
    kind = config.get("vision_tower_type") or next((kind for kind in kinds if kind in name.lower()), None)
    if kind is None and isinstance(told := config.get("vision_config"), Mapping) and "model_type" in told:
        return vision.find(told["model_type"])
    if kind not in tuple(kinds):
        raise CheckpointError(
            f"no vision tower of the type {kind or name!r}", hint="vision_tower_type: " + ", ".join(kinds)
        )
    return vision.find(kinds[kind])


def _places(folder: Path, name: str) -> list[Path]:
    """Where a tower may lie by its name: in the checkpoint, and beside it. The name itself may lead to any folder of
    this machine, which is the user's to name."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    return [folder / last, folder.resolve().parent / last] if last not in ("", ".", "..") else []


def _from_hub(name: str, fetch: Callable[[str], Path], what: str) -> Path:
    """Raises CheckpointError where it is not to be had, or not asked for."""
    if name.partition("/")[0] not in PUBLISHERS:
        raise CheckpointError(f"the hub is not asked for {name!r}, which the checkpoint names and not you")
    log.warning("config.json names the vision tower %r: asking the hub for %s", name, what)
    return fetch(name)


def _search(folder: Path, name: str, config: Mapping[str, Any]) -> Path:
    """The folder with the weights of a tower that is not in the checkpoint."""
    if tuned := next((key for key in ("unfreeze_mm_vision_tower", "unfreeze_vision_tower") if config.get(key)), None):
        raise CheckpointError(
            f"{tuned} is true: the vision tower was tuned, and the checkpoint does not hold it",
            hint="--vision-tower DIR with the tuned one",
        )
    places = _places(folder, name)
    for place in places:
        if os.path.isdir(place):  # unlike Path's, it takes any name: too long, or with a NUL
            if place.parent != folder:
                log.warning("the vision tower is taken from %s", place)
            return place
    looked = "not in the checkpoint" + "".join(f", nor in {str(place)!r}" for place in places)
    hint = "--vision-tower DIR"
    if hub.is_name(name):
        try:
            return _from_hub(name, hub.fetch, "its weights")
        except CheckpointError as error:
            looked += f"; {error.message}"
            hint = f"hf download {name} --local-dir DIR, if you trust it; then --vision-tower DIR"
    elif os.path.isdir(name):
        looked += "; a folder elsewhere is read only where you name it"
        hint = f"--vision-tower {name}"
    raise CheckpointError(f"no weights of the vision tower {name!r}: {looked}", hint=hint)


def _description(module: ModuleType, folder: Path, name: str, config: Mapping[str, Any]) -> Path | None:
    """The folder with the configs of a tower whose weights are in the checkpoint. The hub is asked only where nothing
    else tells what the weights cannot."""
    places = _places(folder, name)
    for place in filter(_describes, places):
        if not place.samefile(folder):
            return place
    if config.get("vision_config") is not None or tower_config.is_published(module, name):
        return None
    looked = "neither the checkpoint nor " + ", ".join(repr(str(place)) for place in places)
    if hub.is_name(name):
        try:
            return _from_hub(name, hub.fetch_configs, "its config")
        except CheckpointError as error:
            looked += f"; {error.message}"
    raise CheckpointError(
        f"nothing tells the heads and the activation of the vision tower {name!r}: {looked}",
        hint="--vision-tower DIR with the tower's config.json, or a vision_config in the checkpoint's",
    )


def _describes(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that describe a tower."""
    return tuple(filter(os.path.isfile, (folder / name for name in ("config.json", *FILES))))
