"""From components to written parts and the golden that proves them: each component is loaded, asked, written, asked
again with the weights as stored, and let go before the next."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge.bundle.golden import TOKENS, Golden, Outputs, References
from edge.bundle.manifest import File, Part
from edge.errors import UsageError
from edge.inputs import image
from edge.inputs.calibration import Record
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.inputs.views import Views, views
from edge.recipes import Target
from edge.spec import VLMSpec
from edge.types import Embeddings, Segment, Tokens
from edge.verify import Ids, shown
from exporters import golden_sample, reference
from exporters.calibration_sample import Sample, samples
from exporters.equalizer import Looked, equalised, look
from exporters.formats import NOTHING, Measured
from exporters.gguf import imatrix
from exporters.judge import Cost, Judge
from exporters.models.component import Component
from exporters.models.decoders import LanguageModel
from exporters.models.encoder import Encoder
from exporters.order import Order, Stages
from exporters.quantization import importance
from exporters.search import Side
from exporters.sources.checkpoint import Checkpoint
from exporters.writer import Writer

Rows = NDArray[np.float32]
Answer = tuple[NDArray[np.float32], NDArray[np.int32]]  # as `reference.answer` gives it


@dataclass(frozen=True)
class Built:
    parts: tuple[Part, ...]  # without measured errors
    golden: Golden
    prompt: Mapping[str, Any]  # of golden, but for the question: as a manifest has it
    costs: Mapping[str, Cost]  # vision, decoder
    companions: tuple[File, ...] = ()


def build(order: Order, folder: Path, progress: Stages) -> Built:
    """Write the parts and `tokenizer.json` into `folder`. What cannot be written is refused before the work."""
    checkpoint, spec = order.checkpoint, order.checkpoint.spec
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json(), encoding="utf-8")
    tokenizer = Tokenizer.open(folder / "tokenizer.json")
    pixel_values = image.pixels(order.picture, spec.image)
    told, whole = golden_prompt(order, tokenizer)
    decoder = components(checkpoint)[1]
    vision, *others = encoders(checkpoint, order.targets)
    matters = _read(order.importance, decoder) if order.importance else {}
    write = Writer(order, folder, progress)
    write.check(vision, decoder, *others)
    judged = samples(order.calibration)

    seen = write_vision(write, vision, pixel_values, judged, whole)
    talks = _conversations(spec, tokenizer, order.calibration, seen.calibration)
    named = [f"the conversation about {sample.name}" for sample in judged]
    asked = _conversations(
        spec, tokenizer, judged, [Embeddings(rows[0].numpy(), "judged") for rows in seen.looked.exact]
    )
    golden_talks = asked_of(told, seen)
    said = _decoder(write, decoder, golden_talks, talks, dict(zip(named, asked, strict=True)), matters)
    for component in others:
        module = write.load(component, Encoder)
        equalised(module, seen.looked, order.targets[component.role])
        write.encoder(component, module, widened=order.widened.get(component.role, NOTHING))
    write.finish()
    golden = golden_of(order, pixel_values, seen, [*zip(said.fp32, said.stored, said.rounded, strict=True)])
    costs = {"vision": seen.cost, "decoder": said.cost}
    return Built(tuple(write.parts), golden, told, costs, tuple(write.companions))


def golden_prompt(order: Order, tokenizer: Tokenizer) -> tuple[dict[str, Any], Views | None]:
    """The golden question around its picture, as a manifest has it; and the picture's views, where it has several."""
    checkpoint, spec = order.checkpoint, order.checkpoint.spec
    told: dict[str, Any] = {"segments": cut(checkpoint, tokenizer, order.question)}
    if not (counts := golden_sample.divided(order.picture, spec)):
        return told, None
    whole = views(order.picture, spec)
    rows = Embeddings(np.empty((counts["image_tokens"], 0), np.float32), "golden", grid=whole.grid)
    told["views"] = {**counts, "segments": cut(checkpoint, tokenizer, order.question, rows)}
    return told, whole


def asked_of(told: Mapping[str, Any], seen: Seen) -> list[tuple[Ids, Rows]]:
    """The golden question as the decoder gets it, and the picture's rows in float32: as one view, and in all."""
    talks = [(told["segments"], seen.looked.exact[0].numpy())]
    if seen.divided is not None:
        talks.append((told["views"]["segments"], seen.divided[0].rows[None]))
    return talks


def golden_of(
    order: Order,
    pixel_values: Rows,
    seen: Seen,
    answers: Sequence[tuple[Answer, Answer, Answer | None]],
) -> Golden:
    """`answers`: to each question of `asked_of`, in float32, as stored, and rounded where kernels round."""
    exact = seen.looked.exact[0].numpy()
    pictures = [(exact, seen.stored, seen.rounded), *([_batched(seen.divided)] if seen.divided else [])]
    one, *more = (_references(rows, *said) for rows, said in zip(pictures, answers, strict=True))
    return Golden(order.picture, pixel_values, one.fp32, one.stored, one.rounded, more[0] if more else None)


def _references(
    rows: tuple[Rows, Rows, Rows | None], exact: Answer, stored: Answer, rounded: Answer | None
) -> References:
    """Of one golden question: `rows` are the picture's in float32, as stored, and rounded where kernels round."""
    found = None
    if rows[2] is not None or rounded is not None:
        found = Outputs(rows[1] if rows[2] is None else rows[2], *(rounded or stored))
    return References(Outputs(rows[0], *exact), Outputs(rows[1], *stored), found)


def _batched(rows: tuple[Embeddings, Embeddings, Embeddings | None]) -> tuple[Rows, Rows, Rows | None]:
    exact, stored, rounded = rows
    return exact.rows[None], stored.rows[None], None if rounded is None else rounded.rows[None]


class Seen(NamedTuple):
    """What the vision encoder gave for the golden picture, and fp32 for the other ones."""

    looked: Looked  # golden's is the first
    stored: Rows
    rounded: Rows | None  # None: its kernels round no activations
    cost: Cost
    calibration: list[Embeddings]
    divided: tuple[Embeddings, Embeddings, Embeddings | None] | None  # golden in all its views: fp32, stored, rounded


def write_vision(
    write: Writer, component: Component, pixel_values: Rows, judged: Sequence[Sample], divided: Views | None
) -> Seen:
    """The encoder is loaded, asked, equalised, judged, written and asked again. It is judged by images of one view."""
    order = write.order
    spec, target = order.checkpoint.spec, order.targets[component.role]
    encoder = write.load(component, Encoder)
    samples = {sample.name: torch.from_numpy(image.pixels(sample.image, spec.image)) for sample in judged}
    looked = look(encoder, samples)
    pictures = [views(record.picture, spec) for record in order.calibration]
    seen = [reference.encode_all(encoder, picture) for picture in pictures]
    exact = None if divided is None else reference.encode_all(encoder, divided)
    equalised(encoder, looked, target)
    judge = write.judge(component, encoder, [*samples.values()], looked.exact)
    pixels = (pixel_values, *(view for picture in pictures for view in picture.pixels))
    write.encoder(component, encoder, map(torch.from_numpy, pixels), judge.widened)
    stored = reference.encode(encoder, pixel_values)
    both = None
    if divided is not None and exact is not None:
        both = exact, reference.encode_all(encoder, divided), _rounded(judge, encoder, divided)

    def again() -> Encoder:
        module = write.load(component, Encoder)
        equalised(module, looked, target)
        return module

    cost = write.held(component, judge, again)
    return Seen(looked, stored, judge.rounded[0].numpy() if judge.rounds else None, cost, seen, both)


def _rounded(judge: Judge, encoder: Encoder, divided: Views) -> Embeddings | None:
    if not judge.rounds:
        return None
    with judge.rounding():
        return reference.encode_all(encoder, divided)


class _Said(NamedTuple):
    """What the decoder answered about the golden picture, as one view, and in all its views where it is divided."""

    fp32: list[Answer]
    stored: list[Answer]
    rounded: list[Answer | None]  # None: its kernels round no activations
    cost: Cost


def _decoder(
    write: Writer,
    component: Component,
    golden: Sequence[tuple[Ids, Rows]],
    talks: Sequence[Sequence[Segment]],
    judged: Mapping[str, Sequence[Segment]],
    matters: Mapping[str, Tensor],
) -> _Said:
    """The same for the decoder.

    golden: the question around the picture as one view, and its rows; then the same of all its views.
    talks: calibration.
    judged: what it is equalised for and judged by, each with what it is called.
    matters: an importance that came with the call; else it is measured on the calibration, if there is one.
    """
    target = write.order.targets[component.role]
    model = write.load(component, LanguageModel)
    fp32 = [reference.answer(model, *talk) for talk in golden]
    prompt, rows = golden[0]
    sequences = [reference.merged(model, talk) for talk in (shown(prompt, rows[0]), *talks)]
    asked = {name: reference.merged(model, talk) for name, talk in judged.items()}
    measured = None
    if not matters and len(sequences) > 1:
        matters = importance.measure(model, sequences[1:])
        measured = Measured(matters, len(sequences) - 1)
    looked = look(model, asked)
    followed = equalised(model, looked, target, matters)
    judge = write.judge(component, model, [*asked.values()], looked.exact)
    write.decoder(component, model, sequences, followed, measured, judge.widened)
    stored = [
        reference.answer(model, *talk, guess=tokens.tolist()) for talk, (_, tokens) in zip(golden, fp32, strict=True)
    ]
    rounded: list[Answer | None] = [None for _ in golden]
    if judge.rounds:
        with judge.rounding():
            guesses = [() if judge.together else tokens.tolist() for _, tokens in stored]
            rounded = [reference.answer(model, *talk, guess=guess) for talk, guess in zip(golden, guesses, strict=True)]

    def again() -> LanguageModel:
        module = write.load(component, LanguageModel)
        equalised(module, looked, target, matters)
        return module

    return _Said(fp32, stored, rounded, write.held(component, judge, again))


def measured(order: Order, tokenizer: Tokenizer) -> list[Side]:
    """Both parts, and what each scheme would cost their linear layers. The two are held at once."""
    checkpoint, spec = order.checkpoint, order.checkpoint.spec
    vision, *_ = encoders(checkpoint, order.targets)
    decoder = components(checkpoint)[1]
    encoder, model = (component.load(checkpoint.weights) for component in (vision, decoder))
    assert isinstance(encoder, Encoder) and isinstance(model, LanguageModel)
    judged = samples(order.calibration)
    shown = {sample.name: torch.from_numpy(image.pixels(sample.image, spec.image)) for sample in judged}
    looked = look(encoder, shown)
    talks = _conversations(spec, tokenizer, judged, [Embeddings(rows[0].numpy(), "judged") for rows in looked.exact])
    asked = {sample.name: reference.merged(model, talk) for sample, talk in zip(judged, talks, strict=True)}
    equalised(encoder, looked, order.targets[vision.role])
    equalised(model, look(model, asked), order.targets["decoder"])
    return [
        Side.measured(vision, encoder, [*shown.values()], order.targets[vision.role]),
        Side.measured(decoder, model, [*asked.values()], order.targets["decoder"]),
    ]


def _conversations(
    spec: VLMSpec,
    tokenizer: Tokenizer,
    records: Iterable[Record | Sample],
    seen: Iterable[Embeddings],
) -> list[list[Segment]]:
    """Each record as a conversation about its picture."""
    return [
        segments(
            spec.prompt,
            tokenizer,
            [Turn.about(record.question, (rows,), record.answer)],
        )
        for record, rows in zip(records, seen, strict=True)
    ]


def _read(matrix: Path, decoder: Component) -> dict[str, Tensor]:
    skeleton = decoder.skeleton()
    assert isinstance(skeleton, LanguageModel)
    return imatrix.read(matrix, skeleton.config)


def own_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The checkpoint's, without a bundle."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tokenizer.json")
        file.write_text(checkpoint.tokenizer_json(), encoding="utf-8")
        return Tokenizer.open(file)


def cut(checkpoint: Checkpoint, tokenizer: Tokenizer, question: str, picture: Embeddings | None = None) -> Ids:
    """The golden question around its picture, None: as one view. Raises UsageError when it and its answer do not fit
    the context."""
    spec = checkpoint.spec
    one = Embeddings(np.empty((spec.prompt.image_tokens, spec.decoder.hidden), np.float32), "golden")
    shown = one if picture is None else picture
    cut = segments(spec.prompt, tokenizer, [Turn.about(question, (shown,))])
    if (needed := sum(map(len, cut)) + TOKENS) > (context := spec.decoder.context):
        tiles = f", {len(shown)} of them for its tiles," * (picture is not None)
        fewer = context - needed + len(shown)
        raise UsageError(
            f"one short question about a picture takes {needed} positions{tiles} with its answer, the context holds "
            f"{context}",
            hint=f"--context {needed} or more"
            + f", or --image-tokens {fewer}" * (picture is not None and fewer >= len(one)),
        )
    return [list(segment.ids) if isinstance(segment, Tokens) else None for segment in cut]


def components(checkpoint: Checkpoint) -> tuple[Component, Component]:
    """What becomes a part each: tower with projector, and the decoder."""
    return checkpoint.encoder, checkpoint.components["decoder"]


def parts(checkpoint: Checkpoint, to: Mapping[str, Target]) -> list[Component]:
    """What the targets ask for, in the order in which it is written, but the decoder last."""
    return [*encoders(checkpoint, to), *([checkpoint.components["decoder"]] if "decoder" in to else [])]


def encoders(checkpoint: Checkpoint, to: Mapping[str, Target]) -> list[Component]:
    """Tower with projector under each role that the targets give them: the part if there is one, and what other
    people's tools want."""
    return [checkpoint.encoder.of(role) for role in to if role != "decoder"]
