"""The manifest that an export would write, before anything is written: what `edge fit` reads of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge import plugins
from edge.bundle.golden import GOLDEN
from edge.bundle.manifest import ROLES, File, Manifest, Part
from edge.recipes import Recipe, Target, bytes_per_weight
from exporters import targets
from exporters.checkpoint import Checkpoint, open_checkpoint
from exporters.formats import Job
from exporters.models.component import Component
from exporters.pipeline import components, encoders


def foresee(
    source: str,
    recipe: str,
    format: str | None,
    schemes: tuple[str, ...],
    *,
    vision_tower: Path | None = None,
    mmproj: Path | None = None,
) -> Manifest:
    """Names and shapes of the weights are read, and no weight. Raises as an export does."""
    resolved = targets.resolve(format, schemes, recipe, None)
    checkpoint = open_checkpoint(source, vision_tower=vision_tower, mmproj=mmproj)
    return manifest(checkpoint, resolved)


def manifest(checkpoint: Checkpoint, recipe: Recipe, options: targets.Options = targets.NO_OPTIONS) -> Manifest:
    """Its files' bytes are right to a few percent; they have no hashes, and the golden question is not known."""
    parts, companions = [], []
    for component in (*encoders(checkpoint, recipe.targets), components(checkpoint)[1]):  # as they are written
        target = recipe.targets[component.role]
        size = _bytes(checkpoint, component, target, options.get(target.format, {}))
        file = File(f"{component.role}.{target.format}", size, "")
        if component.role in ROLES:
            counted = component.weights
            parts.append(Part(component.covers, target.format, target.scheme, (file,), (), (), weights=counted))
        else:
            companions.append(file)
    return Manifest(
        name=checkpoint.name,
        source={"name": checkpoint.name},
        license=checkpoint.license,
        recipe=recipe.name,
        spec=checkpoint.spec,
        golden_prompt={},
        parts=tuple(parts),
        tokenizer=File("tokenizer.json", 0, ""),
        golden=File(GOLDEN, 0, ""),
        versions={},
        companions=tuple(companions),
    )


def _bytes(checkpoint: Checkpoint, component: Component, target: Target, options: Mapping[str, Any]) -> int:
    """As the format itself says where options may change it."""
    if any(options.values()) and (size := getattr(plugins.load(targets.FORMATS, target.format), "size", None)):
        found: int = size(Job(component, target.scheme, Path(), checkpoint, options=options))
        return found
    return int(bytes_per_weight(target.format, target.scheme) * component.weights)
