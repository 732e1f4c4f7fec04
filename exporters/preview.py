"""The manifest that an export would write, before anything is written: what `edge fit` reads of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from edge import plugins
from edge.bundle.golden import GOLDEN
from edge.bundle.manifest import ROLES, File, Manifest, Part
from edge.recipes import Recipe, bytes_per_weight
from exporters import golden_sample, pipeline, targets, widening
from exporters.formats import NOTHING, Job
from exporters.sources.checkpoint import Checkpoint, open_checkpoint
from exporters.widening import Widened


def foresee(
    source: str,
    recipe: str,
    format: str | None,
    schemes: tuple[str, ...],
    *,
    vision_tower: Path | None = None,
    mmproj: Path | None = None,
    base: str | None = None,
) -> Manifest:
    """Names and shapes of the weights are read, and no weight. Raises as an export does."""
    resolved = targets.resolve(format, schemes, recipe, None)
    checkpoint = open_checkpoint(source, vision_tower=vision_tower, mmproj=mmproj, base=base)
    return manifest(checkpoint, resolved)


def manifest(
    checkpoint: Checkpoint,
    recipe: Recipe,
    options: targets.Options = targets.NO_OPTIONS,
    widened: Widened = NOTHING,
) -> Manifest:
    """Its files' bytes are right to a few percent; they have no hashes, and the golden question is not known. Images
    are divided as the drawing is."""
    parts, companions = [], []
    for component in pipeline.parts(checkpoint, recipe.targets):  # as they are written
        target = recipe.targets[component.role]
        mine = options.get(target.format, {})
        job = Job(component, target.scheme, Path(), checkpoint, options=mine, widened=widened.get(component.role, {}))
        widening.check(job, target.format)
        size = _bytes(job, target.format)
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
        golden_prompt={"views": golden_sample.divided(golden_sample.drawing(), checkpoint.spec)},
        parts=tuple(parts),
        tokenizer=File("tokenizer.json", 0, ""),
        golden=File(GOLDEN, 0, ""),
        versions={},
        companions=tuple(companions),
    )


def _bytes(job: Job, format: str) -> int:
    """As the format itself says where options may change it."""
    told = any(job.options.values()) or job.widened
    if told and (size := getattr(plugins.load(targets.FORMATS, format), "size", None)):
        found: int = size(job)
        return found
    return int(bytes_per_weight(format, job.scheme) * job.component.weights + widening.extra_bytes(job, format))
