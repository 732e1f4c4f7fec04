"""Where a checkpoint's vision tower lies, and how large it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edge import plugins
from edge.errors import CheckpointError
from exporters import hub
from exporters.checkpoint import check_numbers, read_json
from exporters.models.component import Component
from exporters.models.vision.clip import TowerConfig
from exporters.weights import Weights

TOWERS = "exporters.models.vision"
# The towers that OpenAI published: 64 wide heads, quick-GELU. Of others nothing is known without their config.
PUBLISHED = re.compile(r"clip-vit-(base|large)-patch\d+")
SIZES = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@dataclass(frozen=True)
class Found:
    component: Component
    config: TowerConfig
    weights: Weights  # the checkpoint's, and the tower's where they lie elsewhere
    ignored: str  # a pattern of names under the tower that are never computed
    folder: Path | None  # where it lies, if not in the checkpoint


def find(folder: Path, config: Mapping[str, Any], weights: Weights, given: Path | None) -> Found:
    """The tower in the folder `given`, in the checkpoint, or where `mm_vision_tower` leads, in this order."""
    name = config.get("mm_vision_tower")
    if not isinstance(name, str) or not name:
        raise CheckpointError(f"config.json names no vision tower: mm_vision_tower is {name!r}", hint="is it a VLM?")
    module = _module(config, name)
    inside = _prefix(weights)
    where = given if given or inside is not None else _search(folder, name)
    prefix = inside or ""
    ignored = ""
    if where is not None:
        other = Weights.open(where)
        if (outside := _prefix(other)) is None:
            raise CheckpointError(f"{str(where)!r} holds no vision tower", hint="--vision-tower DIR of a CLIP model")
        ignored = re.escape(inside) + ".*|" if inside else ""  # what lies in the checkpoint is replaced
        prefix, weights = outside, weights.merged(other.within(outside))
    sizes = _sizes(config, where, name, weights, prefix)
    tower = _config(module, sizes, config)
    component = Component("vision", partial(module.Tower, tower), module.keys(tower, prefix))
    unused = "|".join(str(index) for index in range(tower.run_layers, tower.layers)) or "-"
    tail = rf"post_layernorm\..*|embeddings\.position_ids|encoder\.layers\.(?:{unused})\..*"
    return Found(component, tower, weights, f"{ignored}{re.escape(prefix)}(?:{tail})", where)


def _module(config: Mapping[str, Any], name: str) -> Any:
    kinds = {plugins.facts(TOWERS, file)["KIND"]: file for file in plugins.names(TOWERS)}
    kind = config.get("vision_tower_type") or next((kind for kind in kinds if kind in name.lower()), name)
    if kind not in tuple(kinds):
        raise CheckpointError(f"no vision tower of the type {kind!r}", hint="vision_tower_type: " + ", ".join(kinds))
    return plugins.load(TOWERS, kinds[kind])


def _prefix(weights: Weights) -> str | None:
    """What stands before the tower's names, as in `model.vision_tower.vision_tower.vision_model.`"""
    own = re.compile(r"(.*\.|)(?:embeddings\.(?:class|patch)_embedding|pre_layrnorm|encoder\.layers\.\d+)(?:\..*|)")
    found = (own.fullmatch(name) for name in weights if "text_model." not in name)
    return next((match[1] for match in found if match), None)


def _search(folder: Path, name: str) -> Path:
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    places = [folder / last, folder.resolve().parent / last, Path(name)]
    for place in places:
        if place.is_dir():
            return place
    looked = "not in the checkpoint, nor in " + ", ".join(repr(str(place)) for place in places)
    if hub.is_name(name):
        try:
            return hub.fetch(name)
        except CheckpointError as error:
            looked += f"; {error.message}"
    raise CheckpointError(f"no weights of the vision tower {name!r}: {looked}", hint="--vision-tower DIR")


def _sizes(
    config: Mapping[str, Any], folder: Path | None, name: str, weights: Weights, prefix: str
) -> Mapping[str, Any]:
    """In transformers' names: as a config says, else as the weights' shapes tell."""
    described = config.get("vision_config")
    if described is None and folder is not None and (folder / "config.json").is_file():
        beside = read_json(folder / "config.json")
        described = beside.get("vision_config", beside)
    if described is None and not PUBLISHED.search(name):
        raise CheckpointError(
            f"nothing tells the heads and the activation of the vision tower {name!r}",
            hint="--vision-tower DIR with the tower's config.json, or a vision_config in the checkpoint's",
        )
    described = described or {}
    if not isinstance(described, Mapping):
        raise CheckpointError(f"vision_config is {described!r}", hint="it must be a JSON object")
    return described if all(size in described for size in SIZES) else _inferred(weights, prefix) | dict(described)


def _inferred(weights: Weights, prefix: str) -> dict[str, int]:
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
        "num_attention_heads": max(1, hidden // 64),
        "intermediate_size": ffn,
    }


def _config(module: Any, sizes: Mapping[str, Any], config: Mapping[str, Any]) -> TowerConfig:
    layer, feature = config.get("mm_vision_select_layer", -2), config.get("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise CheckpointError(f"mm_vision_select_feature is {feature!r}", hint="one of: patch, cls_patch")
    try:
        tower: TowerConfig = module.from_config(sizes, select_layer=layer, select_feature=feature)
        check_numbers(tower, signed=("select_layer",))
        fits = 0 <= tower.run_layers <= tower.layers
        whole = tower.hidden % tower.heads == 0 and tower.grid > 0
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"the vision tower's config is damaged: {error!r}", hint="download it again") from error
    if not fits:
        raise CheckpointError(
            f"mm_vision_select_layer is {layer}, of {tower.layers} layers", hint="is it the right vision tower?"
        )
    if not whole or tower.activation not in module.ACTIVATIONS:
        raise CheckpointError(
            f"the vision tower cannot be built: {tower}", hint="activations: " + ", ".join(module.ACTIVATIONS)
        )
    return tower
