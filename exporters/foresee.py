"""The manifest that an export would write, before anything is written: what `edge fit` reads of a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

from edge.bundle import File, Manifest, Part
from edge.recipes import Recipe
from edge.sizes import bytes_per_weight
from exporters import targets
from exporters.build import components, encoders
from exporters.checkpoint import Checkpoint, open_checkpoint


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


def manifest(checkpoint: Checkpoint, recipe: Recipe) -> Manifest:
    """Its files' bytes are right to a few percent; they have no hashes, and the golden question is not known."""
    parts, companions = [], []
    for component in (components(checkpoint)[1], *encoders(checkpoint, recipe.targets)):
        target = recipe.targets[component.role]
        numbers = sum(math.prod(tensor.shape) for tensor in component.skeleton().state_dict().values())
        file = File(
            f"{component.role}.{target.format}", int(numbers * bytes_per_weight(target.format, target.scheme)), ""
        )
        if component.role not in ("vision", "decoder"):
            companions.append(file)
            continue
        covers = ("vision", "projector") if component.role == "vision" else ("decoder",)
        parts.append(Part(covers, target.format, target.scheme, (file,), (), ()))
    return Manifest(
        name=checkpoint.name,
        source={"name": checkpoint.name},
        license=checkpoint.license,
        recipe=recipe.name,
        spec=checkpoint.spec,
        golden_prompt={},
        parts=tuple(parts),
        tokenizer=File("tokenizer.json", 0, ""),
        golden=File("golden.npz", 0, ""),
        versions={},
        companions=tuple(companions),
    )
