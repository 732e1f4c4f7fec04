"""How large a checkpoint's vision encoder is: by the config that describes it, else by what was published."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.errors import CheckpointError
from exporters.checkpoint import read_json
from exporters.models.vision.clip import TowerConfig
from exporters.weights import Weights

# The towers that OpenAI published: 64 wide heads, quick-GELU. Of others nothing is known without their config.
PUBLISHED = re.compile(r"clip-vit-(base|large)-patch\d+")
PUBLISHED_HEAD = 64


def read(
    module: Any, config: Mapping[str, Any], folder: Path | None, given: bool, weights: Weights, prefix: str
) -> tuple[TowerConfig, dict[str, int]]:
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
    described = _described(config, folder, given) or {f"{name}, as published": _published(name, weights, prefix)}
    read = {
        place: module.from_config(
            _with_heads(fields, "" if given else name), select_layer=layer, select_feature=feature
        )
        for place, fields in described.items()
    }
    first, *others = read.items()
    for place, tower in others:
        if tower != first[1]:
            raise CheckpointError(
                f"two configs of the vision encoder disagree: {first[0]} has {first[1]}, {place} has {tower}",
                hint="keep the right one, or give its folder with --vision-tower DIR",
            )
    found: TowerConfig = first[1]
    if not 0 <= found.run_layers <= found.layers:
        raise CheckpointError(
            f"mm_vision_select_layer is {layer}, of {found.layers} layers", hint="is it the right vision tower?"
        )
    fields = described[first[0]]
    return found, {name: size for name, size in module.DEFAULTS.items() if type(size) is int and name not in fields}


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


def _with_heads(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Heads that a config leaves out are 12, as transformers has it. Where they cannot be, a published tower's are."""
    hidden = fields.get("hidden_size")
    if "num_attention_heads" in fields or type(hidden) is not int or hidden % 12 == 0 or not PUBLISHED.search(name):
        return fields
    return {**fields, "num_attention_heads": max(1, hidden // PUBLISHED_HEAD)}


def _published(name: str, weights: Weights, prefix: str) -> dict[str, int]:
    """In transformers' names, by the weights' shapes."""
    if not PUBLISHED.search(name):
        raise CheckpointError(
            f"nothing tells the heads and the activation of the vision tower {name!r}",
            hint="--vision-tower DIR with the tower's config.json, or a vision_config in the checkpoint's",
        )

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if prefix + name not in weights:
            raise CheckpointError(f"missing: {prefix + name}", hint="is the vision tower complete?")
        if len(found := weights.shape(prefix + name)) != rank:
            raise CheckpointError(f"wrong shape: {prefix + name} {list(found)}", hint="is it a CLIP vision tower?")
        return found

    hidden, _, patch, _ = shape("embeddings.patch_embedding.weight", 4)
    positions, _ = shape("embeddings.position_embedding.weight", 2)
    ffn, _ = shape("encoder.layers.0.mlp.fc1.weight", 2)
    layer = re.compile(re.escape(prefix) + r"encoder\.layers\.(\d+)\..*")
    return {
        "image_size": round((positions - 1) ** 0.5) * patch,
        "patch_size": patch,
        "hidden_size": hidden,
        "num_hidden_layers": 1 + max(int(match[1]) for name in weights if (match := layer.fullmatch(name))),
        "num_attention_heads": max(1, hidden // PUBLISHED_HEAD),
        "intermediate_size": ffn,
    }
