"""From components to written parts and the golden that proves them: each component is loaded, asked, written, asked
again with the weights as stored, and let go before the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge import bundle, image, plugins
from edge.bundle import Part
from edge.golden import Golden, Outputs
from edge.prompt import Turn, segments
from edge.recipes import Target
from edge.tokenizer import Tokenizer
from edge.types import Embeddings, Tokens
from exporters import reference, targets
from exporters.checkpoint import Checkpoint
from exporters.component import Component
from exporters.decoders.llama import Decoder
from exporters.encoder import Encoder, fused

Progress = Callable[[str, float], None]
Ids = list[list[int] | None]
M = TypeVar("M", Encoder, Decoder)
T = TypeVar("T")


@dataclass(frozen=True)
class Built:
    parts: tuple[Part, ...]  # without measured errors
    golden: Golden
    prompt: Ids  # token ids around the picture, which None stands for


def build(
    checkpoint: Checkpoint,
    to: Mapping[str, Target],
    picture: NDArray[np.uint8],
    question: str,
    folder: Path,
    progress: Progress,
) -> Built:
    """Write the parts and `tokenizer.json` into `folder`; picture is RGB `[H, W, 3]`."""
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json(), encoding="utf-8")
    pixel_values = image.pixels(picture, checkpoint.spec.image)
    vision, decoder = components(checkpoint)
    step = _Step(checkpoint, folder, progress)
    vision_part, fp32_rows, stored_rows = step.run(
        vision, Encoder, to["vision"], ("vision", "projector"), lambda encoder: reference.encode(encoder, pixel_values)
    )
    prompt = _cut(checkpoint, Tokenizer.open(folder / "tokenizer.json"), question, fp32_rows)
    decoder_part, fp32_answer, stored_answer = step.run(
        decoder, Decoder, to["decoder"], ("decoder",), lambda model: reference.answer(model, prompt, fp32_rows)
    )
    golden = Golden(picture, pixel_values, Outputs(fp32_rows, *fp32_answer), Outputs(stored_rows, *stored_answer))
    return Built((vision_part, decoder_part), golden, prompt)


def components(checkpoint: Checkpoint) -> tuple[Component, Component]:
    """What becomes a part each: tower with projector, and the decoder."""
    found = checkpoint.components
    return fused(found["vision"], found["projector"]), found["decoder"]


def bytes_needed(checkpoint: Checkpoint, to: Mapping[str, Target]) -> int:
    """What the parts will take, to a few percent."""
    total = 0.0
    for component in components(checkpoint):
        target = to[component.role]
        numbers = sum(math.prod(tensor.shape) for tensor in component.skeleton().state_dict().values())
        total += numbers * plugins.facts(targets.FORMATS, target.format)["BYTES_PER_WEIGHT"][target.scheme]
    return int(total)


@dataclass(frozen=True)
class _Step:
    checkpoint: Checkpoint
    folder: Path
    progress: Progress

    def run(
        self, component: Component, kind: type[M], target: Target, covers: tuple[str, ...], ask: Callable[[M], T]
    ) -> tuple[Part, T, T]:
        """The written part, and what `ask` gets from torch before and after the weights became what is stored."""
        stage = f"{component.role}: {target}"
        self.progress(stage, 0.0)
        module = component.load(self.checkpoint.weights)
        assert isinstance(module, kind)
        fp32 = ask(module)
        writer = plugins.load(targets.FORMATS, target.format)
        # The last stretch of a stage is the reference on the stored weights.
        progress = lambda done: self.progress(stage, done * 0.95)  # noqa: E731
        written = writer.write(component, module, target.scheme, self.folder, progress)
        stored = ask(module)
        part = Part(
            covers=covers,
            format=target.format,
            scheme=target.scheme,
            files=tuple(bundle.describe(self.folder, file) for file in written.files),
            inputs=written.inputs,
            outputs=written.outputs,
            tolerance=targets.schemes(target.format)[component.role][target.scheme],
        )
        self.progress(stage, 1.0)
        return part, fp32, stored


def _cut(checkpoint: Checkpoint, tokenizer: Tokenizer, question: str, rows: NDArray[np.float32]) -> Ids:
    turn = Turn(question, (Embeddings(rows[0], key="golden"),))
    cut: Sequence[object] = segments(checkpoint.spec.prompt, tokenizer, [turn])
    return [list(segment.ids) if isinstance(segment, Tokens) else None for segment in cut]
