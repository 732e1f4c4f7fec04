"""How a decoder's weights come to 4 bits: by the format's own search, or before it writes them by GPTQ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from edge import plugins
from edge.errors import UsageError
from edge.recipes import GPTQ, QUANTIZERS, Recipe, Target
from exporters.formats import Job, Progress
from exporters.models.component import Component
from exporters.models.decoders import LanguageModel
from exporters.quantization import gptq
from exporters.quantization.gptq import Grid
from exporters.targets import FORMATS

CONVERSATIONS = 32  # to calibrate with: each costs a prompt through torch, and more hardly change the statistics
# GPTQ fits weights to them, and some sets of 32 ask too little (BENCHMARKS.md). A large decoder takes ten minutes with
# as many.
CONVERSATIONS_GPTQ, LARGE = 64, 1 << 29  # weights


def conversations(quantize: str, decoder: Component) -> int:
    """How many are taken of those that are given."""
    return CONVERSATIONS_GPTQ if quantize == GPTQ and decoder.weights < LARGE else CONVERSATIONS


def chosen(wanted: str | None, recipe: Recipe, *, calibrated: bool) -> str:
    """One of QUANTIZERS: the wanted one, or the recipe's. Raises UsageError where it is none, or cannot be used."""
    found = wanted or recipe.quantize
    if found not in QUANTIZERS:
        raise UsageError(f"no --quantize {found!r}", hint="one of: " + ", ".join(QUANTIZERS))
    if found == GPTQ:
        grid(recipe.targets["decoder"])
        if not calibrated:
            raise UsageError(
                f"--quantize {GPTQ} rounds weights for the inputs that they get, and no conversations are given",
                hint="--calib DIR, with images and questions like yours",
            )
    return found


def grid(decoder: Target) -> Grid:
    """Which scales the blocks of a 4-bit decoder can have. Raises UsageError where its weights are no such blocks."""
    found = grids(decoder.format).get(decoder.scheme)
    if found is None:
        able = [
            f"--format {name} --scheme decoder={scheme}" for name in plugins.names(FORMATS) for scheme in grids(name)
        ]
        raise UsageError(
            f"--quantize {GPTQ} rounds to 4-bit integers in blocks, and the decoder is written as {decoder}",
            hint="one of: " + ", ".join(able),
        )
    return found


def grids(format: str) -> Mapping[str, Grid]:
    """By scheme; none where a format has no such scheme."""
    found: Mapping[str, Grid] = plugins.facts(FORMATS, format).get("GRIDS", {})
    return found


def rounded(job: Job, format: str, module: LanguageModel, sequences: Sequence[Tensor], progress: Progress) -> Job:
    """The job with the scales of what GPTQ has rounded. Afterwards the module holds the weights as rounded; what is not
    stored in the scheme is left out.

    sequences: rows `[1, S, hidden]` float32 of calibration conversations.
    """
    apart = getattr(plugins.load(FORMATS, format), "apart", None)
    left: dict[str, Tensor] = dict(apart(job)) if apart else {}
    left |= {name: torch.ones(len(module.get_parameter(name)), dtype=torch.bool) for name in job.widened}
    scales = gptq.round_decoder(module, sequences, grid(Target(format, job.scheme)), progress, left)
    return replace(job, scales=scales)
