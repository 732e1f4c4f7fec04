"""The manifest that an export would write, before anything is written: what `edge fit` reads of a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

import gguf

from edge.bundle.manifest import File, Manifest, Part
from edge.recipes import Recipe, Target, bytes_per_weight
from exporters import targets
from exporters.checkpoint import Checkpoint, open_checkpoint
from exporters.models.component import Component
from exporters.pipeline import components, encoders, other_kinds


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
    for component in (*encoders(checkpoint, recipe.targets), components(checkpoint)[1]):  # as they are written
        target = recipe.targets[component.role]
        file = File(f"{component.role}.{target.format}", _bytes(component, target), "")
        if component.role not in ("vision", "decoder"):
            companions.append(file)
            continue
        covers = ("vision", "projector") if component.role == "vision" else ("decoder",)
        parts.append(Part(covers, target.format, target.scheme, (file,), (), (), tensor_types=target.tensor_types))
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


def _bytes(component: Component, target: Target) -> int:
    usual = bytes_per_weight(target.format, target.scheme)
    total = usual * sum(math.prod(tensor.shape) for tensor in component.skeleton().state_dict().values())
    for kind, numbers in other_kinds(component, target).values():
        block, size = gguf.GGML_QUANT_SIZES[kind]
        total += numbers * (size / block - usual)
    return int(total)
