"""TFLite, for XNNPACK: plain operators, weights shared by several signatures, keys and values kept by who runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edge.decoders import signatures as steps
from edge.types import Array, TensorSpec
from exporters.checkpoint import Checkpoint
from exporters.formats import Progress, Written
from exporters.formats.tflite import lower
from exporters.formats.tflite.components import Step, slots
from exporters.formats.tflite.model import Graph, Model
from exporters.formats.tflite.weights import Weights
from exporters.models.component import Component
from exporters.models.decoders import DecoderConfig, LanguageModel
from exporters.models.encoder import Encoder
from exporters.quantization import integers

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
BYTES_PER_WEIGHT = {"fp32": 4.0, "w8a8": 1.0, "w8": 1.0, "w4": 0.60, "legacy": 1.0}
# How many positions a call computes at most. XNNPACK lays out its memory for so many when a signature is compiled, and
# shorter calls cost nothing then. A prime, so that no size of a model is taken for it.
LONGEST = 509
CACHES = (256, 512, 1024, 2048)  # and the model's context


def write(
    component: Component,
    module: nn.Module,
    scheme: str,
    folder: Path,
    progress: Progress,
    importance: Mapping[str, Tensor] | None = None,
    *,
    checkpoint: Checkpoint | None = None,  # nothing of it is written
) -> Written:
    """Write `module` (an Encoder or a decoder, float32) into `folder`. Afterwards it holds the weights as stored."""
    skeleton = component.skeleton()
    weights = Weights(module.state_dict(), scheme, importance or {})
    names = {id(parameter): name for name, parameter in skeleton.named_parameters()}
    model = Model()
    if isinstance(skeleton, Encoder):
        path = folder / "vision.tflite"
        inputs = {"pixel_values": (1, 3, skeleton.image_size, skeleton.image_size)}
        shapes = lower.run(Graph(model, "encode"), weights, names, inputs, ["image_embeds"], skeleton)
        tensors = _specs(inputs), _specs(shapes)
        model.save(path, progress)
        return Written((path,), *tensors)
    assert isinstance(skeleton, LanguageModel)
    assert isinstance(module, LanguageModel)
    path = folder / "decoder.tflite"
    caches = [*(length for length in CACHES if length < skeleton.config.context), skeleton.config.context]
    signatures = {steps.PREFILL: 0, **{f"{steps.DECODE}{length}": length for length in caches}}
    for done, (name, past) in enumerate(signatures.items(), 1):
        step = Step(skeleton, LONGEST, past)
        outputs = ["logits", *(f"present.{slot}" for slot in slots(skeleton.config))]
        lower.run(Graph(model, name, step.varying), weights, names, step.inputs(), outputs, step)
        progress(0.9 * done / len(signatures))
    model.save(path, lambda done: progress(0.9 + 0.1 * done))
    rotations = folder / steps.ROTATIONS
    np.save(rotations, _rotations(module.config))
    return Written((path, *_write_table(module.embed_tokens.weight, scheme, folder), rotations), (), ())


def _rotations(config: DecoderConfig) -> Array:
    """cos and sin of every position, over the whole width of a head: see Step."""
    cos, sin = config.rope.tables(config.context)
    rest = torch.zeros(config.context, config.head_dim - config.rope.width)
    return torch.stack([torch.cat([cos, cos, rest + 1], dim=-1), torch.cat([-sin, sin, rest], dim=-1)]).numpy()


def _specs(shapes: Mapping[str, tuple[int, ...]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items())


def _write_table(table: Tensor, scheme: str, folder: Path) -> tuple[Path, ...]:
    """The embedding table lies beside the graph, to be memory-mapped: a prompt touches few of its rows."""
    rows, scales = folder / "embed_tokens.npy", folder / "embed_scales.npy"
    if scheme == "fp32":
        np.save(rows, table.numpy())
        return (rows,)
    packed = integers.per_channel(table)
    np.save(rows, packed.values.numpy())
    np.save(scales, packed.scales[:, None].numpy())
    table.copy_(packed.dequantized())
    return rows, scales
