"""Equalising as an export does it: sample images and conversations go through a component, and its weights change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from edge.inputs import image
from edge.inputs.calibration import Record
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.recipes import Target
from edge.spec import VLMSpec
from edge.types import Embeddings
from exporters import reference
from exporters.calibration_sample import samples
from exporters.models.attention import GrowingCache
from exporters.models.decoders import LanguageModel
from exporters.models.encoder import Encoder
from exporters.quantization import equalize, rounding
from exporters.quantization.observed import Inputs, observe

ROWS = 128  # of what a layer is multiplied with, that errors are measured on
CONVERSATIONS = 2  # through the decoder, whose passes take longest


class Equalizer:
    """For the components of one export, in the order in which they are written; each is its own function in float32
    before and after. A component whose target keeps floats is left alone."""

    def __init__(
        self, spec: VLMSpec, tokenizer: Tokenizer, targets: Mapping[str, Target], calibration: Sequence[Record]
    ) -> None:
        self._spec, self._tokenizer = spec, tokenizer
        self._how = {role: rounding.of(target.format, target.scheme) for role, target in targets.items()}
        rounds = any(how.integers for how in self._how.values())
        self._samples = samples(calibration) if rounds else []
        self._seen: dict[str, Inputs] = {}  # by the encoder, which may be written twice
        self._rows: list[NDArray[np.float32]] = []  # [1, N, hidden] of each image

    def encoder(self, module: Encoder, role: str) -> Encoder:
        """The same module. Raises CheckpointError where activations are not finite, ImageError where an image cannot be
        read."""
        if self._samples and not self._rows:
            pixels = {sample.name: image.pixels(sample.image, self._spec.image) for sample in self._samples}
            passes = {name: self._encoding(module, values) for name, values in pixels.items()}
            self._seen = observe(module, equalize.readers(module), passes, ROWS)
        if (how := self._how[role]).integers:
            equalize.equalize(module, self._seen, how)
        return module

    def decoder(self, module: LanguageModel, importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The importance as it is afterwards; to be asked after an encoder. Raises CheckpointError as above."""
        if not (how := self._how["decoder"]).integers:
            return dict(importance)
        asked = [*zip(self._samples, self._rows, strict=True)][:CONVERSATIONS]
        passes = {}
        for sample, rows in asked:
            turn = Turn.about(sample.question, (Embeddings(rows[0], "calibration"),), sample.answer)
            conversation = segments(self._spec.prompt, self._tokenizer, [turn])
            passes[f"the conversation about {sample.name}"] = _answering(module, reference.merged(module, conversation))
        seen = observe(module, equalize.readers(module), passes, ROWS)
        return equalize.following(importance, equalize.equalize(module, seen, how, importance))

    def _encoding(self, module: Encoder, pixels: NDArray[np.float32]) -> Callable[[], object]:
        return lambda: self._rows.append(reference.encode(module, pixels))


def _answering(module: LanguageModel, rows: Tensor) -> Callable[[], object]:
    config = module.config
    return lambda: module(rows, GrowingCache(config.heads, config.kv_heads, config.rope), everywhere=True)
