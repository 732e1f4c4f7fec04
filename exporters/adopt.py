"""A published GGUF decoder, kept byte for byte, with the vision part of a checkpoint, proven: `edge export MODEL.gguf
--vision CKPT`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from edge import devices
from edge.bundle import manifest as bundles
from edge.bundle import staging
from edge.bundle.golden import GOLDEN, TOKENS
from edge.bundle.manifest import ADOPTED, Bundle, Part
from edge.engines import installed_engines, open_part, opening
from edge.errors import CheckpointError, UsageError
from edge.inputs import image
from edge.inputs.calibration import read
from edge.inputs.tokenizer import Tokenizer
from edge.planning.fit import fit
from edge.recipes import Recipe, Target
from edge.types import Decoder as Engine
from edge.types import Embeddings, OpenOptions, PartFiles, Tokens
from edge.verify import Ids, distance, shown, verify
from exporters import finite, golden_sample, malloc, preview, targets
from exporters.calibration_sample import samples
from exporters.checkpoints import shortened
from exporters.equalizer import equalised
from exporters.export import (
    Exported,
    ExportRequest,
    described,
    next_command,
    require_engines,
    require_parity,
    require_space,
    with_errors,
)
from exporters.formats import NOTHING
from exporters.gguf.adopted import Decoder
from exporters.judge import MAX_LOSS
from exporters.models.encoder import Encoder
from exporters.order import Order, Stages
from exporters.pipeline import Answer, Built, asked_of, encoders, golden_of, golden_prompt, write_vision
from exporters.sources import prompts
from exporters.sources.checkpoint import Checkpoint, open_checkpoint
from exporters.sources.image_budget import budgeted
from exporters.writer import Writer

FORMAT, SUFFIX = "gguf", ".gguf"
USUAL = "onnx-w8a8-gguf-q4_0"  # its vision part, where a call says no other
TOLERANCE = {"cosine": 0.99}  # of what it answered here, on a processor whose kernels round otherwise
_FED = 0.999  # cosine between what rows and what their tokens give: above, images can be fed
_LEAST = 4  # tokens that are fed both ways


def export(request: ExportRequest, progress: Stages) -> Exported:
    """Raises EdgeError; then nothing new is at `request.output`, and what was there is untouched."""
    start = time.perf_counter()
    malloc.economise()
    seen = _targets(request)
    decoder = Decoder.open(Path(request.checkpoint))
    recipe = Recipe("custom", {**seen, "decoder": Target(FORMAT, decoder.scheme)})
    require_engines(recipe)
    calibration = read(request.calib) if request.calib else []
    picture, question = golden_sample.choose(calibration)
    if request.threads:
        torch.set_num_threads(request.threads)
    progress("read", 0.0)
    checkpoint, notes = _checkpoint(request, decoder)
    order = Order(
        checkpoint,
        seen,
        request.options,
        picture,
        question,
        calibration,
        widened=request.widened,
        max_loss=MAX_LOSS if request.max_loss is None else request.max_loss,
        explain=request.explain,
    )
    finite.check(checkpoint, seen, request.options, lambda done: progress("read", done), order.widened)
    foreseen = preview.manifest(checkpoint, Recipe("custom", seen), request.options)
    with staging.create(request.output) as folder:
        require_space(sum(file.bytes for file in foreseen.files()) + decoder.path.stat().st_size, folder)
        built = _build(order, decoder, folder, progress, request.threads)
        built.golden.save(folder / GOLDEN)
        manifest = described(checkpoint, recipe, question, built, folder)
        bundles.write_manifest(folder, manifest)
        progress("verify", 0.0)
        report = verify(Bundle.open(folder), threads=request.threads)
        progress("verify", 1.0)
        require_parity(report, manifest.parts, order.max_loss)
        bundles.write_manifest(folder, with_errors(manifest, report, built.costs))
    size = sum(file.bytes for file in manifest.files())
    predicted = fit(manifest, devices.profile(request.device)) if request.device else None
    return Exported(
        request.output,
        size,
        time.perf_counter() - start,
        report,
        next_command(request.output, manifest, recipe, question),
        predicted,
        prompts.origin(checkpoint, request.prompt),
        built.costs,
        notes,
    )


def _targets(request: ExportRequest) -> Mapping[str, Target]:
    """Of all roles but the decoder's. Raises UsageError on what a call asks of the decoder."""
    if Path(request.checkpoint).suffix.lower() != SUFFIX:
        raise UsageError(
            f"--vision goes with a decoder's GGUF file, which {request.checkpoint!r} is not",
            hint=f"edge export MODEL.gguf --vision {request.vision}",
        )
    unmeant = {
        "--mmproj": request.mmproj,
        "--base": request.base,
        "--imatrix": request.imatrix,
        "--quantize": request.quantize,
        "--target-size": request.target_size,
        "--max-ram": request.max_ram,
    }
    for option, given in unmeant.items():
        if given is not None:
            raise UsageError(f"{option} does not go with --vision: the decoder is kept as it is", hint="leave it out")
    usual = targets.resolve(None, (), request.recipe or USUAL, None)
    found = targets.resolve(request.format, request.schemes, request.recipe or USUAL, None, request.options)
    others = {role: target for role, target in found.targets.items() if role != "decoder"}
    asked = [word for word in request.schemes if not _of(word.lower(), others)]
    if asked or found.targets["decoder"] != usual.targets["decoder"] or found.targets["decoder"].format != FORMAT:
        raise UsageError(
            f"the decoder is kept as it is, and {found.targets['decoder']} would be another",
            hint="--scheme vision=SCHEME is for the vision part",
        )
    return others


def _of(word: str, others: Mapping[str, Target]) -> bool:
    """Whether SCHEME or ROLE=SCHEME is for one of these roles."""
    role, named, scheme = word.rpartition("=")
    able = (r for r, target in others.items() if scheme in targets.schemes(target.format).get(r, {}))
    return role in others if named else any(able)


def _checkpoint(request: ExportRequest, decoder: Decoder) -> tuple[Checkpoint, tuple[str, ...]]:
    """That of the vision part, with the decoder's sizes; and what the user should know."""
    found = open_checkpoint(str(request.vision), vision_tower=request.vision_tower)
    found, note = prompts.settle(budgeted(found, request.image_tokens), request.prompt)
    notes = (*found.notes, *([note] if note else ()), *decoder.compare(found))
    sizes = decoder.spec()
    trained = min(sizes.context, found.spec.decoder.context)
    sizes = replace(sizes, context=shortened(request.context, trained, found.spec.prompt.image_tokens))
    own = str(decoder.file.get("general.license", found.license))
    license = found.license if own == found.license else f"{found.license} (decoder: {own})"
    kept = f"the decoder is {decoder.path.name} as it was published: kept byte for byte, and not proven"
    return replace(found, spec=replace(found.spec, decoder=sizes), license=license), (*notes, kept)


def _build(
    order: Order,
    decoder: Decoder,
    folder: Path,
    progress: Stages,
    threads: int,
) -> Built:
    """As `exporters.pipeline.build`, with the decoder as it is."""
    checkpoint = order.checkpoint
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json(), encoding="utf-8")
    tokenizer = Tokenizer.open(folder / "tokenizer.json")
    pixel_values = image.pixels(order.picture, checkpoint.spec.image)
    told, whole = golden_prompt(order, tokenizer)
    vision, *others = encoders(checkpoint, order.targets)
    write = Writer(order, folder, progress)
    write.check(vision, *others)
    part = _kept(decoder, folder)
    _require_fed(_opened(part, folder, checkpoint, threads), decoder, told["segments"])
    seen = write_vision(write, vision, pixel_values, samples(order.calibration), whole)
    for component in others:
        module = write.load(component, Encoder)
        equalised(module, seen.looked, order.targets[component.role])
        write.encoder(component, module, widened=order.widened.get(component.role, NOTHING))
    write.finish()
    opened = _opened(part, folder, checkpoint, threads)  # anew: not beside the encoder
    said = [_answer(opened, *talk) for talk in asked_of(told, seen)]
    golden = golden_of(order, pixel_values, seen, [(one, one, None) for one in said])
    return Built((*write.parts, part), golden, told, {"vision": seen.cost}, tuple(write.companions))


def _kept(decoder: Decoder, folder: Path) -> Part:
    copy = folder / decoder.path.name
    shutil.copyfile(decoder.path, copy)
    return Part(
        covers=("decoder",),
        format=FORMAT,
        scheme=decoder.scheme,
        files=(bundles.describe(folder, copy),),
        inputs=(),
        outputs=(),
        tolerance=TOLERANCE,
        weights=decoder.weights,
        options={ADOPTED: True},
    )


def _opened(
    part: Part,
    folder: Path,
    checkpoint: Checkpoint,
    threads: int,
) -> Engine:
    """Raises EngineError where the library runs no such architecture."""
    spec = checkpoint.spec.decoder
    files = tuple(folder / file.path for file in part.files)
    made = PartFiles(FORMAT, part.scheme, part.covers, files, (), (), spec, adopted=True)
    engine = opening(FORMAT, installed_engines())[0].name
    options = OpenOptions(threads=threads or torch.get_num_threads(), context=spec.context)
    return cast("Engine", open_part(made, engine, options))


def _require_fed(engine: Engine, decoder: Decoder, prompt: Ids) -> None:
    """A model that treats tokens otherwise than their rows would treat an image's so, too. Raises CheckpointError."""
    ids = max((ids for ids in prompt if ids is not None), key=len)
    ids = (ids * _LEAST)[: max(_LEAST, len(ids))]
    expected = engine.extend([Tokens(tuple(ids))]).copy()
    engine.rewind(0)
    found = engine.extend([Embeddings(decoder.rows(ids), "fed")]).copy()
    engine.rewind(0)
    if not (alike := distance(found, expected)["cosine"]) >= _FED:
        raise CheckpointError(
            f"{decoder.path.name}: llama.cpp's {decoder.file.head.architecture!r} answers rows of the embedding table "
            f"otherwise than their tokens (cosine {alike:.4f}), and so would images be",
            hint="export the decoder from its checkpoint",
        )


def _answer(engine: Engine, prompt: Ids, rows: NDArray[np.float32]) -> Answer:
    """As `exporters.reference.answer`."""
    engine.rewind(0)
    logits = first = engine.extend(shown(prompt, rows[0])).copy()
    tokens = []
    for _ in range(TOKENS):
        tokens.append(int(logits.argmax()))
        logits = engine.extend([Tokens((tokens[-1],))])
    return first, np.array(tokens, np.int32)
