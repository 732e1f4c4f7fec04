"""From components to written parts and the golden that proves them: each component is loaded, asked, written, asked
again with the weights as stored, and let go before the next."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge.bundle.golden import TOKENS, Golden, Outputs
from edge.bundle.manifest import File, Part
from edge.errors import UsageError
from edge.inputs import image
from edge.inputs.calibration import Record
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.recipes import Target
from edge.spec import VLMSpec
from edge.types import Embeddings, Segment, Tokens
from exporters import reference
from exporters.calibration_sample import Sample, samples
from exporters.equalizer import Looked, equalised, look
from exporters.formats import NOTHING, Measured
from exporters.gguf import imatrix
from exporters.judge import Cost
from exporters.models.component import Component
from exporters.models.decoders import LanguageModel
from exporters.models.encoder import Encoder
from exporters.order import Order, Stages
from exporters.quantization import importance
from exporters.search import Side
from exporters.sources.checkpoint import Checkpoint
from exporters.writer import Writer

Ids = list[list[int] | None]
Rows = NDArray[np.float32]
Answer = tuple[NDArray[np.float32], NDArray[np.int32]]  # as `reference.answer` gives it


@dataclass(frozen=True)
class Built:
    parts: tuple[Part, ...]  # without measured errors
    golden: Golden
    prompt: Ids  # token ids around the picture, which None stands for
    costs: Mapping[str, Cost]  # vision, decoder
    companions: tuple[File, ...] = ()


def build(order: Order, folder: Path, progress: Stages) -> Built:
    """Write the parts and `tokenizer.json` into `folder`. What cannot be written is refused before the work."""
    checkpoint, spec = order.checkpoint, order.checkpoint.spec
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json(), encoding="utf-8")
    tokenizer = Tokenizer.open(folder / "tokenizer.json")
    pixel_values = image.pixels(order.picture, spec.image)
    prompt = cut(checkpoint, tokenizer, order.question)
    decoder = components(checkpoint)[1]
    vision, *others = encoders(checkpoint, order.targets)
    matters = _read(order.importance, decoder) if order.importance else {}
    write = Writer(order, folder, progress)
    write.check(vision, decoder, *others)
    judged = samples(order.calibration)

    seen = write_vision(write, vision, pixel_values, judged)
    talks = _conversations(spec, tokenizer, order.calibration, seen.calibration)
    named = [f"the conversation about {sample.name}" for sample in judged]
    asked = _conversations(spec, tokenizer, judged, [rows.numpy() for rows in seen.looked.exact])
    golden_talk = (prompt, seen.looked.exact[0].numpy())
    said = _decoder(write, decoder, golden_talk, talks, dict(zip(named, asked, strict=True)), matters)
    for component in others:
        module = write.load(component, Encoder)
        equalised(module, seen.looked, order.targets[component.role])
        write.encoder(component, module, widened=order.widened.get(component.role, NOTHING))
    write.finish()
    rounded = None
    if seen.rounded is not None or said.rounded is not None:
        rounded = Outputs(seen.stored if seen.rounded is None else seen.rounded, *(said.rounded or said.stored))
    stored = Outputs(seen.stored, *said.stored)
    golden = Golden(order.picture, pixel_values, Outputs(golden_talk[1], *said.fp32), stored, rounded)
    costs = {"vision": seen.cost, "decoder": said.cost}
    return Built(tuple(write.parts), golden, prompt, costs, tuple(write.companions))


class Seen(NamedTuple):
    """What the vision encoder gave for the golden picture, and fp32 for the other ones."""

    looked: Looked  # golden's is the first
    stored: Rows
    rounded: Rows | None  # None: its kernels round no activations
    cost: Cost
    calibration: list[Rows]


def write_vision(write: Writer, component: Component, pixel_values: Rows, judged: Sequence[Sample]) -> Seen:
    """The encoder is loaded, asked, equalised, judged, written and asked again."""
    order = write.order
    spec, target = order.checkpoint.spec.image, order.targets[component.role]
    encoder = write.load(component, Encoder)
    shown = {sample.name: torch.from_numpy(image.pixels(sample.image, spec)) for sample in judged}
    looked = look(encoder, shown)
    pictures = [image.pixels(record.picture, spec) for record in order.calibration]
    seen = [reference.encode(encoder, pixels) for pixels in pictures]
    equalised(encoder, looked, target)
    judge = write.judge(component, encoder, [*shown.values()], looked.exact)
    write.encoder(component, encoder, map(torch.from_numpy, (pixel_values, *pictures)), judge.widened)
    stored = reference.encode(encoder, pixel_values)

    def again() -> Encoder:
        module = write.load(component, Encoder)
        equalised(module, looked, target)
        return module

    cost = write.held(component, judge, again)
    return Seen(looked, stored, judge.rounded[0].numpy() if judge.rounds else None, cost, seen)


class _Said(NamedTuple):
    """What the decoder answered about the golden picture."""

    fp32: Answer
    stored: Answer
    rounded: Answer | None  # None: its kernels round no activations
    cost: Cost


def _decoder(
    write: Writer,
    component: Component,
    golden: tuple[Ids, Rows],
    talks: Sequence[Sequence[Segment]],
    judged: Mapping[str, Sequence[Segment]],
    matters: Mapping[str, Tensor],
) -> _Said:
    """The same for the decoder.

    golden: the question, and the rows of the picture that None stands for.
    talks: calibration.
    judged: what it is equalised for and judged by, each with what it is called.
    matters: an importance that came with the call; else it is measured on the calibration, if there is one.
    """
    target = write.order.targets[component.role]
    model = write.load(component, LanguageModel)
    fp32 = reference.answer(model, *golden)
    sequences = [reference.merged(model, talk) for talk in (reference.conversation(*golden), *talks)]
    asked = {name: reference.merged(model, talk) for name, talk in judged.items()}
    measured = None
    if not matters and len(sequences) > 1:
        matters = importance.measure(model, sequences[1:])
        measured = Measured(matters, len(sequences) - 1)
    looked = look(model, asked)
    followed = equalised(model, looked, target, matters)
    judge = write.judge(component, model, [*asked.values()], looked.exact)
    write.decoder(component, model, sequences, followed, measured, judge.widened)
    stored, rounded = reference.answer(model, *golden), None
    if judge.rounds:
        with judge.rounding():
            rounded = reference.answer(model, *golden)

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
    talks = _conversations(spec, tokenizer, judged, [rows.numpy() for rows in looked.exact])
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
    seen: Iterable[Rows],
) -> list[list[Segment]]:
    """Each record as a conversation about its picture's rows."""
    return [
        segments(
            spec.prompt,
            tokenizer,
            [Turn.about(record.question, (Embeddings(rows[0], "calibration"),), record.answer)],
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


def cut(checkpoint: Checkpoint, tokenizer: Tokenizer, question: str) -> Ids:
    """The golden question around its picture. Raises UsageError when it and its answer do not fit the context."""
    spec = checkpoint.spec
    rows = np.empty((spec.prompt.image_tokens, spec.decoder.hidden), np.float32)
    cut = segments(spec.prompt, tokenizer, [Turn.about(question, (Embeddings(rows, "golden"),))])
    if (needed := sum(map(len, cut)) + TOKENS) > spec.decoder.context:
        raise UsageError(
            f"one short question about a picture takes {needed} positions with its answer, the context holds "
            f"{spec.decoder.context}",
            hint=f"--context {needed} or more",
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
