"""`edge verify BUNDLE --against CHECKPOINT`: ask torch anew, and hold the bundle and its golden to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edge.bundle.golden import VIEWS, Golden, Outputs
from edge.bundle.manifest import Bundle, Manifest
from edge.errors import ParityError, UsageError
from edge.inference.session import load
from edge.inputs import image
from edge.inputs.views import views
from edge.verify import Ids, Report, Row, asked, compare, distance
from exporters import reference
from exporters.models.decoders import LanguageModel
from exporters.models.encoder import Encoder
from exporters.pipeline import components, cut, own_tokenizer
from exporters.sources import prompts
from exporters.sources.checkpoint import Checkpoint, open_checkpoint
from exporters.sources.image_budget import budgeted

_SAME = {"max_abs": 1e-3, "cosine": 0.999999}  # torch against torch, maybe of another version


def verify_against(
    bundle: Bundle,
    checkpoint: str,
    mmproj: Path | None,
    threads: int,
    isa: str | None = None,
    base: str | None = None,
) -> Report:
    """Golden's fp32 side is computed anew, compared with the bundle's (rows against "checkpoint"), and replayed.

    Its stored side is the bundle's own: how weights were rounded hangs on calibration data that a bundle does not hold.
    Raises ParityError when the bundle was made from another checkpoint.
    """
    manifest = bundle.manifest
    source = open_checkpoint(checkpoint, mmproj=mmproj, base=base, context=manifest.spec.decoder.context)
    if source.sha256 != manifest.source["sha256"]:
        raise ParityError(
            f"{checkpoint!r} is not the checkpoint that this bundle was made from ({manifest.source['name']}): "
            f"sha256 {source.sha256[:12]}…, expected {manifest.source['sha256'][:12]}…",
            hint="give the checkpoint that was exported, or export this one",
        )
    views = manifest.spec.image.views
    source = _prompted(budgeted(source, views.image_tokens if views else manifest.spec.prompt.image_tokens), manifest)
    decoder = manifest.part("decoder")
    if decoder.adopted:  # the checkpoint's own is no part of the bundle
        source = replace(source, spec=replace(source.spec, decoder=manifest.spec.decoder))
    if not manifest.spec.tells_of(source.spec):
        raise UsageError(
            "this edge-vlm reads the checkpoint in another way than the one that exported it did",
            hint="export the bundle again",
        )
    golden = Golden.load(bundle.file(manifest.golden))
    prompt = manifest.golden_prompt["segments"]
    anew, *more = _outputs(
        source, golden, [ids for *_, ids in asked(manifest.golden_prompt, golden)], answers=not decoder.adopted
    )
    told = float(_prompt(source, manifest.golden_prompt["question"]) == prompt)
    rows = [Row("prompt", "checkpoint", {"tokens": told}, {"tokens": 1.0})]
    compared = [("", golden.fp32, anew)]
    if golden.divided and more:
        compared.append((VIEWS, golden.divided.fp32, more[0]))
        golden = replace(golden, divided=replace(golden.divided, fp32=more[0]))
    for before, kept, made in compared:
        rows.append(Row(f"{before}vision", "checkpoint", distance(kept.image_embeds, made.image_embeds), _SAME))
        if not decoder.adopted:
            rows.append(Row(f"{before}prefill", "checkpoint", distance(kept.logits, made.logits), _SAME))
    with load(bundle.path, threads=threads, isa=isa, provider="cpu", evaluators=True) as session:
        found = compare(session, replace(golden, fp32=anew))
        return replace(found, rows=(*rows, *found.rows))


def _prompted(source: Checkpoint, manifest: Manifest) -> Checkpoint:
    """With the prompt that the export settled on. One that came from a file is only in the bundle."""
    given = manifest.source.get("prompt")
    if given == prompts.FILE:
        return replace(source, spec=replace(source.spec, prompt=manifest.spec.prompt))
    return prompts.settle(source, given if given in prompts.NAMES else None)[0]


def _outputs(
    source: Checkpoint,
    golden: Golden,
    around: Sequence[Ids],
    *,
    answers: bool,
) -> list[Outputs]:
    """Of the picture as one view, and where there is a second prompt around it, in all its views. Where the decoder is
    not the checkpoint's, golden's answers stay."""
    vision, decoder = components(source)
    encoder = vision.load(source.weights)
    assert isinstance(encoder, Encoder)
    rows = [reference.encode(encoder, image.pixels(golden.picture, source.spec.image))]
    if len(around) > 1:
        rows.append(reference.encode_all(encoder, views(golden.picture, source.spec)).rows[None])
    if not answers:
        kept = [golden.fp32, *([golden.divided.fp32] if golden.divided else [])]
        return [replace(of, image_embeds=one) for of, one in zip(kept, rows, strict=True)]
    del encoder  # one component at a time
    model = decoder.load(source.weights)
    assert isinstance(model, LanguageModel)
    return [Outputs(one, *reference.answer(model, prompt, one)) for one, prompt in zip(rows, around, strict=True)]


def _prompt(source: Checkpoint, question: str) -> Ids:
    """As the checkpoint's own tokenizer cuts it."""
    return cut(source, own_tokenizer(source), question)
