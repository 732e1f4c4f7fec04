"""From components to written parts and the golden that proves them: each component is loaded, asked, written, asked
again with the weights as stored, and let go before the next."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge import plugins
from edge.bundle.golden import TOKENS, Golden, Outputs
from edge.bundle.manifest import ROLES, File, Part, describe
from edge.errors import UsageError
from edge.inputs import image
from edge.inputs.calibration import Record
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.recipes import Target
from edge.spec import VLMSpec
from edge.types import Embeddings, Segment, Tokens
from exporters import reference, targets, widening
from exporters.calibration_sample import Sample, samples
from exporters.checkpoint import Checkpoint
from exporters.equalizer import Equalizer
from exporters.formats import NOTHING, Format, Job, Measured, Written
from exporters.gguf import imatrix
from exporters.judge import MAX_LOSS, Cost, Judge
from exporters.models.component import Component
from exporters.models.decoders import LanguageModel
from exporters.models.encoder import Encoder
from exporters.quantization import importance
from exporters.search import Side
from exporters.targets import Options
from exporters.widening import Widened

Stages = Callable[[str, float], None]  # a stage's name, and the share of it that is done
Ids = list[list[int] | None]
Rows = NDArray[np.float32]
JUDGED = 3  # images, and conversations: each is computed four times
M = TypeVar("M", Encoder, LanguageModel)


@dataclass(frozen=True)
class Order:
    """What is to be written, and what it is measured and proven with."""

    checkpoint: Checkpoint
    targets: Mapping[str, Target]  # by role
    options: Options  # of the formats
    picture: NDArray[np.uint8]  # RGB `[H, W, 3]`, for golden
    question: str
    calibration: Sequence[Record] = ()
    importance: Path | None = None  # a file of it, instead of measuring it on the calibration
    widened: Widened = field(default_factory=dict)  # linear layers with schemes of their own; of a role: no others
    max_loss: float = MAX_LOSS  # of each component
    explain: bool = False  # measure each linear layer, whether rounding hurts or not


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
    write = _Writer(order, folder, progress)
    write.check(vision, decoder, *others)
    equalizer = Equalizer(spec, tokenizer, order.targets, order.calibration)
    judged = samples(order.calibration)[1:JUDGED]  # beside the golden picture, which is the first

    encoder = write.load(vision, Encoder)
    rows = reference.encode(encoder, pixel_values)
    pictures = [pixel_values, *(image.pixels(record.picture, spec.image) for record in order.calibration)]
    seen = [reference.encode(encoder, pixels) for pixels in pictures[1:]]
    shown = [image.pixels(sample.image, spec.image) for sample in judged]
    judged_rows = [reference.encode(encoder, pixels) for pixels in shown]
    equalizer.encoder(encoder, vision.role)
    judge = write.judge(vision, encoder, list(map(torch.from_numpy, (pixel_values, *shown))))
    write.encoder(vision, encoder, map(torch.from_numpy, pictures), judge.widened)
    stored_rows = reference.encode(encoder, pixel_values)
    with judge.rounding():
        rounded_rows = reference.encode(encoder, pixel_values)
    costs = {"vision": write.held(vision, judge, lambda: equalizer.encoder(write.load(vision, Encoder), vision.role))}
    rounds = judge.rounds
    del encoder, judge

    model = write.load(decoder, LanguageModel)
    answer = reference.answer(model, prompt, rows)
    sequences = [
        reference.merged(model, conversation)
        for conversation in (
            reference.conversation(prompt, rows),
            *_conversations(spec, tokenizer, order.calibration, seen),
        )
    ]
    asked = [reference.merged(model, each) for each in _conversations(spec, tokenizer, judged, judged_rows)]
    measure = not matters and len(order.calibration) > 0
    given = importance.measure(model, sequences[1:]) if measure else matters
    measured = Measured(given, len(order.calibration)) if measure else None
    matters = equalizer.decoder(model, given)
    judge = write.judge(decoder, model, [sequences[0], *asked])
    write.decoder(decoder, model, sequences, matters, measured, judge.widened)
    stored_answer = rounded_answer = reference.answer(model, prompt, rows)
    if judge.rounds:
        with judge.rounding():
            rounded_answer = reference.answer(model, prompt, rows)

    def again() -> LanguageModel:
        module = write.load(decoder, LanguageModel)
        equalizer.decoder(module, given)
        return module

    costs["decoder"] = write.held(decoder, judge, again)
    rounds |= judge.rounds
    del model, judge

    for component in others:
        module = equalizer.encoder(write.load(component, Encoder), component.role)
        write.encoder(component, module, widened=order.widened.get(component.role, NOTHING))
    write.finish()
    rounded = Outputs(rounded_rows, *rounded_answer) if rounds else None
    golden = Golden(order.picture, pixel_values, Outputs(rows, *answer), Outputs(stored_rows, *stored_answer), rounded)
    return Built(tuple(write.parts), golden, prompt, costs, tuple(write.companions))


def measured(order: Order, tokenizer: Tokenizer) -> list[Side]:
    """Both parts, and what each scheme would cost their linear layers. The two are held at once."""
    checkpoint, spec = order.checkpoint, order.checkpoint.spec
    vision, *_ = encoders(checkpoint, order.targets)
    decoder = components(checkpoint)[1]
    encoder, model = (component.load(checkpoint.weights) for component in (vision, decoder))
    assert isinstance(encoder, Encoder) and isinstance(model, LanguageModel)
    judged = samples(order.calibration)[1:JUDGED]
    pictures = [image.pixels(source, spec.image) for source in (order.picture, *(sample.image for sample in judged))]
    rows, *seen = [reference.encode(encoder, pixels) for pixels in pictures]
    asked = [reference.conversation(cut(checkpoint, tokenizer, order.question), rows)]
    asked += _conversations(spec, tokenizer, judged, seen)
    sequences = [reference.merged(model, conversation) for conversation in asked]
    equalizer = Equalizer(spec, tokenizer, order.targets, order.calibration)
    equalizer.encoder(encoder, vision.role)
    equalizer.decoder(model, {})
    return [
        Side.measured(vision, encoder, list(map(torch.from_numpy, pictures)), order.targets[vision.role]),
        Side.measured(decoder, model, sequences, order.targets["decoder"]),
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


def encoders(checkpoint: Checkpoint, to: Mapping[str, Target]) -> list[Component]:
    """Tower with projector under each role that the targets give them: the part if there is one, and what other
    people's tools want."""
    return [checkpoint.encoder.of(role) for role in to if role != "decoder"]


class _Writer:
    """Lets formats write components into a folder, and keeps what came of it."""

    def __init__(self, order: Order, folder: Path, progress: Stages) -> None:
        self.order, self.folder, self.progress = order, folder, progress
        self.parts: list[Part] = []
        self.companions: list[File] = []

    def check(self, *components: Component) -> None:
        for component in components:
            job = self._job(component, widened=self.order.widened.get(component.role, {}))
            widening.check(job, self.order.targets[component.role].format)
            if check := getattr(self._format(component), "check", None):
                check(job)

    def load(self, component: Component, kind: type[M]) -> M:
        self.progress(self._stage(component), 0.0)
        module = component.load(self.order.checkpoint.weights)
        assert isinstance(module, kind)
        return module

    def judge(self, component: Component, module: Encoder | LanguageModel, samples: Sequence[Tensor]) -> Judge:
        role, order = component.role, self.order
        return Judge(role, module, samples, order.targets[role], order.widened.get(role), explain=order.explain)

    def held(self, component: Component, judge: Judge, again: Callable[[], Encoder | LanguageModel]) -> Cost:
        """What it costs. Raises ParityError where that is too much; `again` makes the module as it was judged."""
        cost = judge.cost()
        judge.require(cost, self.order.max_loss, component.role, again)
        return cost

    def encoder(
        self,
        component: Component,
        module: Encoder,
        samples: Iterable[Tensor] = (),
        widened: Mapping[str, str] = NOTHING,
    ) -> None:
        job = self._job(component, samples=self._samples(component, samples), widened=widened)
        self._keep(component, self._format(component).encoder(job, module), widened)

    def decoder(
        self,
        component: Component,
        module: LanguageModel,
        samples: Iterable[Tensor],
        matters: Mapping[str, Tensor],
        measured: Measured | None,
        widened: Mapping[str, str],
    ) -> None:
        samples = self._samples(component, samples)
        job = self._job(component, samples=samples, importance=matters, measured=measured, widened=widened)
        self._keep(component, self._format(component).decoder(job, module), widened)

    def finish(self) -> None:
        """Each format once more, with all parts that it wrote."""
        for format in dict.fromkeys(part.format for part in self.parts):
            if finish := getattr(plugins.load(targets.FORMATS, format), "finish", None):
                mine = [part for part in self.parts if part.format == format]
                done = finish(mine, self.folder, self.order.options.get(format, {}))
                changed = dict(zip([part.covers for part in mine], done.parts, strict=True))
                self.parts = [changed.get(part.covers, part) for part in self.parts]
                self.companions += self._described(done.companions)

    def _keep(self, component: Component, written: Written, widened: Mapping[str, str]) -> None:
        files, target = self._described(written.files), self.order.targets[component.role]
        if component.role not in ROLES:
            self.companions += files
        else:
            part = Part(
                covers=component.covers,
                format=target.format,
                scheme=target.scheme,
                files=tuple(files),
                inputs=written.inputs,
                outputs=written.outputs,
                tolerance=targets.schemes(target.format)[component.role][target.scheme],
                weights=component.weights,
                options={**written.options, **({"widened": dict(widened)} if widened else {})},
                details=dict(written.details),
            )
            self.parts.append(part)
        self.companions += self._described(written.companions)

    def _job(self, component: Component, **more: Any) -> Job:
        target = self.order.targets[component.role]
        return Job(
            component,
            target.scheme,
            self.folder,
            self.order.checkpoint,
            lambda done: self.progress(self._stage(component), done),
            options=self.order.options.get(target.format, {}),
            **more,
        )

    def _format(self, component: Component) -> Format:
        format: Any = plugins.load(targets.FORMATS, self.order.targets[component.role].format)
        return format

    def _samples(self, component: Component, samples: Iterable[Tensor]) -> tuple[Tensor, ...]:
        facts = plugins.facts(targets.FORMATS, self.order.targets[component.role].format)
        return tuple(islice(samples, facts.get("SAMPLES", 0)))

    def _described(self, paths: Iterable[Path]) -> list[File]:
        return [describe(self.folder, path) for path in paths]

    def _stage(self, component: Component) -> str:
        return f"{component.role}: {self.order.targets[component.role]}"
