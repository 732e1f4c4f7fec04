"""TFLite, for XNNPACK: plain operators, weights shared by several signatures, keys and values kept by who runs it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from edge.decoders import signatures as steps
from edge.types import Array
from exporters.formats import FITTED, HALF, Job, Written, float_specs, linear_bounds
from exporters.formats.tflite import lower
from exporters.formats.tflite.components import Step, longest, slots
from exporters.formats.tflite.weights import STORAGE, Weights
from exporters.models.decoders import DecoderConfig, LanguageModel
from exporters.models.encoder import Encoder
from exporters.quantization import embedding_table
from exporters.tflite_model import Graph, Model

# The tolerance is on the distance to torch on the same stored weights: the kernels round activations to int8 where
# weights are integers. "legacy" is int8 with one scale for a whole product, the only one that tflite-runtime computes.
SCHEMES = {
    "vision": {
        "fp32": {"max_abs": 1e-3, "cosine": 0.999999},
        "w8a8": {"cosine": 0.9999},
        "legacy": {"cosine": 0.9999},
    },
    "decoder": {
        "fp32": {"max_abs": 1e-3, "cosine": 0.999999, "tokens": 1.0},
        "w8": {"cosine": 0.999},
        "w4": {"cosine": 0.999},
        "legacy": {"cosine": 0.999},
    },
}
WIDER = {
    "vision": {"w8a8": ["fp16", "fp32"], "legacy": ["fp32"]},
    "decoder": {"w8": ["fp16", "fp32"], "w4": ["w8", "fp16", "fp32"], "legacy": ["fp32"]},
}
ACTIVATIONS = {"fp32": "none", "fp16": "none", "w8a8": "row", "w8": "row", "w4": "row", "legacy": "row"}
GRIDS = {"w4": "positive"}
TOOLS = ("ai-edge-litert",)
OPTIONS: dict[str, dict[str, Any]] = {}
# How many positions a call computes at most. XNNPACK lays out its memory for so many when a signature is compiled, and
# shorter calls cost nothing then. A prime, so that hardly any model has it, or what follows from it, among its sizes.
LONGEST = 509
CACHES = (256, 512, 1024, 2048)  # and the model's context


def encoder(job: Job, module: Encoder) -> Written:
    path = job.folder / "vision.tflite"
    model = Model()
    inputs = {"pixel_values": module.view_shape}
    weights = Weights(module.state_dict(), job.stored, job.importance, job.scales)
    shapes = lower.run(Graph(model, "encode"), weights, _names(job), inputs, ["image_embeds"], job.skeleton)
    model.save(path, job.progress)
    return Written((path,), float_specs(inputs), float_specs(shapes))


def decoder(job: Job, module: LanguageModel) -> Written:
    path, config = job.folder / "decoder.tflite", module.config
    model = Model()
    weights, names = Weights(module.state_dict(), job.stored, job.importance, job.scales), _names(job)
    caches = [*(length for length in CACHES if length < config.context), config.context]
    signatures = {steps.PREFILL: 0, **{f"{steps.DECODE}{length}": length for length in caches}}
    skeleton = cast("LanguageModel", job.skeleton)
    sequence = longest(skeleton, caches, LONGEST)
    for done, (name, past) in enumerate(signatures.items(), 1):
        step = Step(skeleton, sequence, past)
        outputs = ["logits", *(f"present.{slot}" for slot in slots(config))]
        lower.run(Graph(model, name, step.varying), weights, names, step.inputs(), outputs, step)
        job.progress(0.9 * done / len(signatures))
    model.save(path, lambda done: job.progress(0.9 + 0.1 * done))
    rotations = job.folder / steps.ROTATIONS
    np.save(rotations, _rotations(config))
    table = embedding_table.write(module.embed_tokens.weight, STORAGE[job.scheme].table, job.folder)
    return Written((path, *table, rotations))


def _names(job: Job) -> dict[int, str]:
    """Of the skeleton's parameters, by which `lower` knows them."""
    return {id(parameter): name for name, parameter in job.skeleton.named_parameters()}


def bounds(job: Job) -> dict[str, float]:
    """Scales of 4-bit blocks are float16, and 7 of them the largest weight; all others are float32."""
    return linear_bounds(job, {"w4": 7 / FITTED * HALF, "fp16": HALF})


def _rotations(config: DecoderConfig) -> Array:
    """cos and sin of every position, over the whole width of a head: see Step."""
    cos, sin = config.rope.tables(config.context)
    rest = torch.zeros(config.context, config.head_dim - config.rope.width)
    return torch.stack([torch.cat([cos, cos, rest + 1], dim=-1), torch.cat([-sin, sin, rest], dim=-1)]).numpy()
