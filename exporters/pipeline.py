"""From components to written parts and the golden that proves them: each component is loaded, asked, written, asked
again with the weights as stored, and let go before the next."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from torch import Tensor, nn

from edge import image, plugins
from edge.bundle import manifest
from edge.bundle.golden import TOKENS, Golden, Outputs
from edge.bundle.manifest import ROLES, File, Part
from edge.calibration import Record
from edge.errors import UsageError
from edge.prompt import Turn, segments
from edge.recipes import Target
from edge.tokenizer import Tokenizer
from edge.types import Embeddings, Segment, Tokens
from exporters import reference, targets
from exporters.checkpoint import Checkpoint
from exporters.equalizer import Equalizer
from exporters.formats import Written
from exporters.gguf import decoder as gguf_decoder
from exporters.gguf import imatrix, mmproj
from exporters.models.component import Component
from exporters.models.decoders import LanguageModel
from exporters.models.encoder import Encoder, fused
from exporters.quantization import importance

Progress = Callable[[str, float], None]
Ids = list[list[int] | None]
Rows = NDArray[np.float32]
M = TypeVar("M", Encoder, LanguageModel)
IMATRIX = "imatrix.gguf"


@dataclass(frozen=True)
class Built:
    parts: tuple[Part, ...]  # without measured errors
    golden: Golden
    prompt: Ids  # token ids around the picture, which None stands for
    companions: tuple[File, ...] = ()


def build(
    checkpoint: Checkpoint,
    to: Mapping[str, Target],
    picture: NDArray[np.uint8],
    question: str,
    folder: Path,
    progress: Progress,
    calibration: Sequence[Record] = (),
    matrix: Path | None = None,
    position_workaround: bool = False,
    split: bool = False,
    ane: bool = False,
) -> Built:
    """Write the parts and `tokenizer.json` into `folder`; picture is RGB `[H, W, 3]`, for golden. The importance of the
    decoder's columns is read from `matrix`, or else measured on the calibration and kept beside the parts. Parts of one
    format become one file where that can be, unless `split`."""
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json(), encoding="utf-8")
    tokenizer = Tokenizer.open(folder / "tokenizer.json")
    spec = checkpoint.spec
    pixel_values = image.pixels(picture, spec.image)
    prompt = cut(checkpoint, tokenizer, question)
    decoder = components(checkpoint)[1]
    vision, *others = encoders(checkpoint, to)
    matters = _read(matrix, decoder) if matrix else {}  # a wrong file is told before the work
    other_kinds(decoder, to["decoder"])  # as is a pattern for no tensor
    _require_mmproj((vision, *others), to)
    write = _Writer(checkpoint, to, folder, progress)
    equalizer = Equalizer(spec, tokenizer, to, calibration)
    apple = {role: {"ane": True} if ane and target.format == "coreml" else {} for role, target in to.items()}

    encoder = write.load(vision, Encoder)
    rows = reference.encode(encoder, pixel_values)
    pictures = [pixel_values, *(image.pixels(record.picture, spec.image) for record in calibration)]
    seen = [reference.encode(encoder, pixels) for pixels in pictures[1:]]
    equalizer.encoder(encoder, vision.role)
    parts: tuple[Part, ...] = ()
    companions: tuple[File, ...] = ()
    if vision.role in ROLES:
        parts += (
            write.part(
                vision, encoder, ("vision", "projector"), None, map(torch.from_numpy, pictures), **apple["vision"]
            ),
        )
    else:
        companions += write.files(vision, encoder, **write.beside(vision, position_workaround))[0]
    stored_rows = reference.encode(encoder, pixel_values)
    del encoder

    model = write.load(decoder, LanguageModel)
    answer = reference.answer(model, prompt, rows)
    cuts = [_segments(prompt, rows)]
    for record, picture_rows in zip(calibration, seen, strict=True):
        turn = Turn.about(record.question, (Embeddings(picture_rows[0], "calibration"),), record.answer)
        cuts.append(segments(spec.prompt, tokenizer, [turn]))
    sequences = [reference.merged(model, conversation) for conversation in cuts]
    if calibration and not matters:
        matters = importance.measure(model, sequences[1:])
        if to["decoder"].format == "gguf":  # llama.cpp's own tools take it too
            imatrix.write(folder / IMATRIX, matters, model.config, len(calibration))
            companions += (manifest.describe(folder, folder / IMATRIX),)
    matters = equalizer.decoder(model, matters)
    parts += (write.part(decoder, model, ("decoder",), matters, sequences, **apple["decoder"]),)
    stored_answer = reference.answer(model, prompt, rows)
    del model

    for component in others:
        module = write.load(component, Encoder)
        equalizer.encoder(module, component.role)
        companions += write.files(component, module, **write.beside(component, position_workaround))[0]
    parts = parts if split else _joined(parts, folder)
    golden = Golden(picture, pixel_values, Outputs(rows, *answer), Outputs(stored_rows, *stored_answer))
    return Built(parts, golden, prompt, companions)


def _require_mmproj(encoders: Iterable[Component], to: Mapping[str, Target]) -> None:
    """An encoder that llama.cpp does not compute is refused before the work."""
    for component in encoders:
        if to[component.role].format == "gguf":
            mmproj.require(cast("Encoder", component.skeleton()))


def _joined(parts: tuple[Part, ...], folder: Path) -> tuple[Part, ...]:
    """The same parts, all in the one file that their format knows to make of theirs; as they are, if it does not."""
    formats = {part.format for part in parts}
    name = plugins.facts(targets.FORMATS, parts[0].format).get("JOINED") if len(formats) == 1 else None
    if name is None or len(parts) == 1:
        return parts
    paths = [folder / part.files[0].path for part in parts]
    plugins.load(targets.FORMATS, parts[0].format).join(paths, folder / name)
    for path in paths:
        path.unlink()
    whole = manifest.describe(folder, folder / name)
    return tuple(replace(part, files=(whole,), bytes=part.files[0].bytes) for part in parts)


def _read(matrix: Path, decoder: Component) -> dict[str, Tensor]:
    skeleton = decoder.skeleton()
    assert isinstance(skeleton, LanguageModel)
    return imatrix.read(matrix, skeleton.config)


def other_kinds(decoder: Component, target: Target) -> dict[str, tuple[Kind, int]]:
    """What the target's `tensor_types` say, and how many numbers each of those tensors has."""
    if not target.tensor_types:
        return {}
    skeleton = decoder.skeleton()
    assert isinstance(skeleton, LanguageModel)
    numbers = {entry.name: entry.tensor.numel() for entry in gguf_decoder.entries(skeleton, {})}
    kinds = gguf_decoder.other_kinds(skeleton, target.tensor_types)
    return {name: (kind, numbers[name]) for name, kind in kinds.items()}


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
    found = checkpoint.components
    return fused(found["vision"], found["projector"]), found["decoder"]


def encoders(checkpoint: Checkpoint, to: Mapping[str, Target]) -> list[Component]:
    """Tower with projector under each role that the targets give them: the part if there is one, and what other
    people's tools want."""
    return [replace(components(checkpoint)[0], role=role) for role in to if role != "decoder"]


@dataclass(frozen=True)
class _Writer:
    checkpoint: Checkpoint
    to: Mapping[str, Target]
    folder: Path
    progress: Progress

    def load(self, component: Component, kind: type[M]) -> M:
        self.progress(self._stage(component), 0.0)
        module = component.load(self.checkpoint.weights)
        assert isinstance(module, kind)
        return module

    def beside(self, component: Component, position_workaround: bool) -> dict[str, Any]:
        """What a role that is no part of the bundle may be told."""
        return {"position_workaround": position_workaround} if self.to[component.role].format == "gguf" else {}

    def files(
        self, component: Component, module: nn.Module, matters: Mapping[str, Tensor] | None = None, **options: Any
    ) -> tuple[tuple[File, ...], Written]:
        target = self.to[component.role]
        written: Written = plugins.load(targets.FORMATS, target.format).write(
            component,
            module,
            target.scheme,
            self.folder,
            lambda done: self.progress(self._stage(component), done),
            matters,
            checkpoint=self.checkpoint,
            **options,
        )
        return tuple(manifest.describe(self.folder, file) for file in written.files), written

    def part(
        self,
        component: Component,
        module: nn.Module,
        covers: tuple[str, ...],
        matters: Mapping[str, Tensor] | None = None,
        samples: Iterable[Tensor] = (),
        **options: Any,
    ) -> Part:
        target = self.to[component.role]
        told = {**options, **({"tensor_type": list(target.tensor_types)} if target.tensor_types else {})}
        if target.tensor_types:
            options["tensor_types"] = target.tensor_types
        if wanted := plugins.facts(targets.FORMATS, target.format).get("SAMPLES", 0):
            options["samples"] = tuple(islice(samples, wanted))
        files, written = self.files(component, module, matters, **options)
        return Part(
            covers=covers,
            format=target.format,
            scheme=target.scheme,
            files=files,
            inputs=written.inputs,
            outputs=written.outputs,
            tolerance=targets.schemes(target.format)[component.role][target.scheme],
            weights=component.weights,
            options=told,
            details=dict(written.details),
        )

    def _stage(self, component: Component) -> str:
        return f"{component.role}: {self.to[component.role]}"


def _segments(prompt: Ids, rows: Rows) -> list[Segment]:
    return [Embeddings(rows[0], "golden") if ids is None else Tokens(tuple(ids)) for ids in prompt]
