"""How large a checkpoint's vision encoder is: by the config that describes it, else by what was published."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.errors import CheckpointError
from exporters.models.vision import VisionConfig
from exporters.sources.checkpoint import read_json
from exporters.sources.weights import Weights


def read(
    module: Any, config: Mapping[str, Any], folder: Path | None, given: bool, weights: Weights, prefix: str
) -> tuple[VisionConfig, dict[str, int]]:
    """As the config in the tower's `folder` and the checkpoint's own vision_config say, which must agree; a folder that
    the user has `given` goes before. Without either, as the weights' shapes tell, if the tower is a published one.
    And the sizes that were left out, for which transformers' defaults stand.

    Raises CheckpointError, which names the field, on what is not known or not supported.
    """
    layer, feature = config.get("mm_vision_select_layer", -2), config.get("mm_vision_select_feature", "patch")
    if type(layer) is not int:
        several = "features of several layers are not joined" if isinstance(layer, list) else "it is no number"
        raise CheckpointError(f"mm_vision_select_layer is {layer!r}: {several}", hint="the number of one layer")
    if feature not in ("patch", "cls_patch"):
        raise CheckpointError(f"mm_vision_select_feature is {feature!r}", hint="one of: patch, cls_patch")
    name = str(config.get("mm_vision_tower"))
    described = _described(config, folder, given)
    if not described:
        described = {f"{name}, as published": _published(module, name, weights, prefix)}
    elif not given and is_published(module, name):
        described = {place: module.completed(fields) for place, fields in described.items()}
    read = {
        place: module.from_config(fields, select_layer=layer, select_feature=feature)
        for place, fields in described.items()
    }
    first, *others = read.items()
    for place, tower in others:
        if tower != first[1]:
            raise CheckpointError(
                f"two configs of the vision encoder disagree: {first[0]} has {first[1]}, {place} has {tower}",
                hint="keep the right one, or give its folder with --vision-tower DIR",
            )
    found: VisionConfig = first[1]
    require_layer(found, "mm_vision_select_layer", layer)
    fields = described[first[0]]
    return found, {name: size for name, size in module.DEFAULTS.items() if type(size) is int and name not in fields}


def require_layer(config: VisionConfig, key: str, layer: int) -> None:
    """Raises CheckpointError where the layer that `key` selects is none of the vision encoder's."""
    if not 0 <= config.run_layers <= config.layers:
        raise CheckpointError(f"{key} is {layer}, of {config.layers} layers", hint="is it the right vision tower?")


def _described(config: Mapping[str, Any], folder: Path | None, given: bool) -> dict[str, Mapping[str, Any]]:
    """Where a config is -> its fields."""
    found: dict[str, Any] = {}
    if folder is not None and (path := folder / "config.json").is_file():
        whole = read_json(path)
        found[str(path)] = whole.get("vision_config", whole)
        # transformers' CLIPModel takes the second, CLIPVisionModel the first.
        if (second := whole.get("vision_config_dict")) is not None:
            found[f"vision_config_dict of {path}"] = second
        if whole.get("vision_config", ...) is None:
            found.pop(str(path))
    if config.get("vision_config") is not None and not (given and found):
        found["vision_config of the checkpoint"] = config["vision_config"]
    for place, fields in found.items():
        if not isinstance(fields, Mapping):
            raise CheckpointError(f"{place}: vision_config is {fields!r}", hint="it must be a JSON object")
    return found


def is_published(module: Any, name: str) -> bool:
    """Whether the encoder of this name needs no config."""
    return module.PUBLISHED is not None and re.search(module.PUBLISHED, name) is not None


def _published(module: Any, name: str, weights: Weights, prefix: str) -> dict[str, int]:
    """In transformers' names, by the weights' shapes."""
    if not is_published(module, name):
        raise CheckpointError(
            f"nothing tells the heads and the activation of the vision tower {name!r}",
            hint="--vision-tower DIR with the tower's config.json, or a vision_config in the checkpoint's",
        )
    sizes: dict[str, int] = module.published(weights, prefix)
    return sizes
