"""A checkpoint goes in, a proven bundle comes out."""

from __future__ import annotations

import gc
import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import torch

import edge
from edge import devices, plugins
from edge.bundle import manifest as bundles
from edge.bundle import staging
from edge.bundle.golden import GOLDEN, golden_bytes
from edge.bundle.manifest import Bundle, Manifest, Part
from edge.engines import installed_engines, made_for, opening, refusals
from edge.errors import EdgeError, EngineError, ParityError
from edge.inputs.calibration import read
from edge.planning.fit import Fit, fit
from edge.recipes import Recipe
from edge.units import format_size
from edge.verify import Report, Row, verify
from exporters import finite, golden_sample, malloc, preview, quantizer, targets
from exporters.judge import MAX_LOSS, Cost
from exporters.order import Order, Stages
from exporters.pipeline import Built, build, measured, own_tokenizer
from exporters.search import Budget, search
from exporters.sources import prompts
from exporters.sources.checkpoint import Checkpoint, open_checkpoint
from exporters.sources.image_budget import budgeted
from exporters.widening import Widened

FLOATS = ("fp16", "f16", "fp32")  # schemes whose activations are not rounded, the smallest first


@dataclass(frozen=True)
class ExportRequest:
    """What `edge export` was asked for; the names are the options'."""

    checkpoint: str
    output: Path
    format: str | None = None
    schemes: tuple[str, ...] = ()
    recipe: str | None = None
    device: str | None = None
    calib: Path | None = None
    imatrix: Path | None = None
    context: int | None = None
    image_tokens: int | None = None  # embeddings that an image may take
    vision_tower: Path | None = None
    mmproj: Path | None = None
    vision: str | None = None  # the checkpoint whose vision part goes with a published decoder (`exporters.adopt`)
    base: str | None = None  # of a LoRA folder
    threads: int = 0
    options: targets.Options = field(default_factory=dict)  # each format's own
    widened: Widened = field(default_factory=dict)  # linear layers with schemes of their own
    max_loss: float | None = None  # of 1 - cosine between a part and fp32; None: MAX_LOSS
    explain: bool = False  # measure what each linear layer costs
    target_size: int | None = None  # bytes of all files; single layers are stored wider where they help most
    max_ram: int | None = None  # bytes of memory, as predicted
    prompt: str | None = None  # the name of a published prompt, or a file
    quantize: str | None = None  # of edge.recipes.QUANTIZERS; None: the recipe's


@dataclass(frozen=True)
class Exported:
    path: Path
    bytes: int
    seconds: float
    report: Report
    next_command: str
    fit: Fit | None  # on the device that was named
    prompt: str  # where it is from
    costs: Mapping[str, Cost]  # vision, decoder
    notes: tuple[str, ...] = ()  # what the user should know of it, and could not see


def export(request: ExportRequest, progress: Stages) -> Exported:
    """Raises EdgeError; then nothing new is at `request.output`, and what was there is untouched."""
    start = time.perf_counter()
    malloc.economise()
    recipe = targets.resolve(request.format, request.schemes, request.recipe, request.device, request.options)
    quantize = quantizer.chosen(request.quantize, recipe, calibrated=bool(request.calib))
    widened = request.widened or recipe.widened
    recipe = replace(recipe, name="custom") if any(widened.values()) else recipe
    require_engines(recipe)
    calibration = read(request.calib) if request.calib else []
    picture, question = golden_sample.choose(calibration)
    if request.threads:
        torch.set_num_threads(request.threads)
    progress("read", 0.0)
    checkpoint = open_checkpoint(
        request.checkpoint,
        vision_tower=request.vision_tower,
        mmproj=request.mmproj,
        context=request.context,
        base=request.base,
    )
    checkpoint, note = prompts.settle(budgeted(checkpoint, request.image_tokens), request.prompt)
    origin = prompts.origin(checkpoint, request.prompt)
    notes = (*checkpoint.notes, *([note] if note else ()))
    order = Order(
        checkpoint,
        recipe.targets,
        request.options,
        picture,
        question,
        calibration[: quantizer.conversations(quantize, checkpoint.components["decoder"])],
        request.imatrix,
        widened,
        MAX_LOSS if request.max_loss is None else request.max_loss,
        request.explain,
        quantize,
    )
    finite.check(checkpoint, recipe.targets, request.options, lambda done: progress("read", done), order.widened)
    order = _within(Budget(request.target_size, request.max_ram), order, recipe, request.device, progress)
    foreseen = preview.manifest(checkpoint, recipe, request.options, order.widened)
    predicted = fit(foreseen, devices.profile(request.device)) if request.device else None
    with staging.create(request.output) as folder:
        require_space(sum(file.bytes for file in foreseen.files()), folder)
        built = build(order, folder, progress)
        built.golden.save(folder / GOLDEN)
        manifest = described(checkpoint, recipe, question, built, folder)
        bundles.write_manifest(folder, manifest)
        gc.collect()  # the last component, before the engines load their own
        progress("verify", 0.0)
        report = verify(Bundle.open(folder), threads=request.threads)
        progress("verify", 1.0)
        require_parity(report, manifest.parts, order.max_loss)
        bundles.write_manifest(folder, with_errors(manifest, report, built.costs))
    size = sum(file.bytes for file in manifest.files())
    if request.target_size is not None and size > request.target_size:
        notes = (
            *notes,
            f"{format_size(size)}, and {format_size(request.target_size)} were asked for: sizes are foreseen",
        )
    seconds, command = time.perf_counter() - start, next_command(request.output, manifest, recipe, question)
    return Exported(request.output, size, seconds, report, command, predicted, origin, built.costs, notes)


def next_command(output: Path, manifest: Manifest, recipe: Recipe, question: str) -> str:
    """What a user does with the bundle."""
    picture_of = ["PICTURE"] if manifest.sees else []
    asks = ["run", str(output), *picture_of, question]
    return shlex.join(["edge", *(asks if runs_here(recipe) else ["verify", str(output)])])


def _within(
    budget: Budget,
    order: Order,
    recipe: Recipe,
    device: str | None,
    progress: Stages,
) -> Order:
    """With the schemes of single layers that the budget allows."""
    if budget == Budget():
        return order
    progress("search", 0.0)
    profile = devices.profile(device or devices.THIS)
    sides = measured(order, own_tokenizer(order.checkpoint))
    spec = order.checkpoint.spec
    tokens = golden_sample.divided(order.picture, spec).get("image_tokens", 0)
    beside = len(order.checkpoint.tokenizer_json()) + golden_bytes(spec, order.picture.size, tokens)
    beside += sum(side.floats for side in sides)

    def foreseen(widened: Widened) -> tuple[int, int]:
        manifest = preview.manifest(order.checkpoint, recipe, order.options, widened)
        size = sum(file.bytes for file in manifest.files()) + beside
        return size, int(fit(manifest, profile).value("peak memory, full context") or 0)

    found = search(sides, budget, foreseen)
    progress("search", 1.0)
    return replace(order, widened=found)


def described(checkpoint: Checkpoint, recipe: Recipe, question: str, built: Built, folder: Path) -> Manifest:
    return Manifest(
        name=checkpoint.name,
        source={
            "name": checkpoint.name,
            "sha256": checkpoint.sha256,
            **({"prompt": given} if (given := checkpoint.prompt_given) else {}),
        },
        license=checkpoint.license,
        recipe=recipe.name,
        spec=checkpoint.spec,
        golden_prompt={"question": question, **built.prompt},
        parts=built.parts,
        tokenizer=bundles.describe(folder, folder / "tokenizer.json"),
        golden=bundles.describe(folder, folder / GOLDEN),
        companions=built.companions,
        versions={"edge-vlm": edge.__version__, **{tool: metadata.version(tool) for tool in tools(recipe)}},
    )


def require_parity(report: Report, parts: tuple[Part, ...], max_loss: float) -> None:
    for row in report.rows:
        if not row.finite:
            raise ParityError(
                f"the {row.stage} holds NaN or infinity, compared with {row.against}: {dict(row.error)}",
                hint=_way_out(row, parts),
            )
        if not row.ok:
            raise ParityError(
                f"the exported {row.stage} is not the same model: {dict(row.error)} against {row.against}, "
                f"tolerance {dict(row.tolerance)}",
                hint=_way_out(row, parts),
            )
        loss = 1 - row.error.get("cosine", 1.0)
        if row.against == "fp32" and not loss <= max_loss:
            raise ParityError(
                f"quantising costs the {row.stage} {loss:.4g} (1 - cosine to fp32), more than {max_loss:.4g}",
                hint="choose a wider --scheme or a larger --max-loss",
            )


def _way_out(row: Row, parts: tuple[Part, ...]) -> str:
    """Reference and artifact hold the same weights, so what is left between them is how activations are computed: a
    scheme that rounds those fails on outliers, and one of floating point does not."""
    role = "vision" if row.stage.endswith("vision") else "decoder"
    part = next(part for part in parts if role in part.covers)
    schemes = targets.schemes(part.format)[role]
    wide = next((scheme for scheme in FLOATS if scheme in schemes), part.scheme)
    if wide == part.scheme or part.scheme in FLOATS:
        return "nothing was written; report this, it is a fault of the export"
    return (
        f"nothing was written; --scheme {role}={wide} rounds no activations, which {part.scheme} may where they have "
        "outliers; if that fails too, report this"
    )


def with_errors(manifest: Manifest, report: Report, costs: Mapping[str, Cost]) -> Manifest:
    def measured(part: Part) -> Part:
        if part.adopted:
            return part
        stages = ("vision",) if "vision" in part.covers else ("prefill", "tokens")
        rows = [row for row in report.rows if row.stage in stages]
        errors = {f"{r.stage}.{r.against}.{k}": v for r in rows for k, v in r.error.items()}
        loss = costs["vision" if "vision" in part.covers else "decoder"].loss
        return replace(part, error={**errors, f"{stages[0]}.fp32.loss": loss})

    return replace(manifest, parts=tuple(measured(part) for part in manifest.parts))


def tools(recipe: Recipe) -> tuple[str, ...]:
    formats = dict.fromkeys(target.format for target in recipe.targets.values())
    return ("torch", *(tool for format in formats for tool in plugins.facts(targets.FORMATS, format)["TOOLS"]))


def runs_here(recipe: Recipe) -> bool:
    """Whether engines of this machine open all parts, or some were proven by an evaluator only."""
    formats = [target.format for role, target in recipe.targets.items() if role in bundles.ROLES]
    engines = installed_engines()
    return all(opening(format, engines) for format in formats)


def require_engines(recipe: Recipe) -> None:
    """The proof opens every part: an engine that is missing is told before the work, not after."""
    engines = installed_engines(evaluators=True)
    for role, target in recipe.targets.items():
        if role in bundles.ROLES and not opening(target.format, engines):
            able = made_for(target.format, engines)
            why = refusals((target.format,), able)
            raise EngineError(
                f"no engine here opens {target.format}, so the {role} could not be proven"
                + "".join(f"\n  {engine.name}: {why[engine.name]}" for engine in able),
                hint=able[0].install if able else "choose another --format",
            )


def require_space(needed: int, folder: Path) -> None:
    """A disk that is too full is told before the work, not after."""
    if (free := shutil.disk_usage(folder).free) < needed:
        raise EdgeError(
            f"the bundle takes about {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free at its place",
            hint="free some space, or name another place with -o",
        )
