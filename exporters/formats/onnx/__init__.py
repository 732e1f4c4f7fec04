"""ONNX, written for ONNX Runtime's fused kernels (opset 21 and com.microsoft 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import onnx_ir as ir

from edge.errors import EdgeError
from edge.types import TensorSpec
from exporters.formats import HALF, Job, Written, linear_bounds
from exporters.formats.onnx import trace
from exporters.formats.onnx.half import SCHEMES as SCHEMES_IN_HALF
from exporters.formats.onnx.half import compute_in_half
from exporters.formats.onnx.lower import STORAGE, Lowering
from exporters.models.decoders import LanguageModel
from exporters.models.encoder import Encoder
from exporters.quantization import embedding_table

# How each role can be stored; the tolerance is on the distance to torch on the same stored weights. What stays above
# zero there is the rounding of activations: to int8, which the schemes below fp16 leave to the kernels, and in w16a16
# and w4a16 to halves after each operator. Independent roundings by 2^-12 of a value after a dozen operators in each of
# 24 layers come to 2^-12 * sqrt(288) = 0.4 % of the result, a cosine of 0.99999.
SCHEMES = {
    "vision": {
        "fp32": {"max_abs": 1e-3, "cosine": 0.999999},
        "fp16": {"max_abs": 1e-3, "cosine": 0.999999},
        "w8a8": {"cosine": 0.9999},
        "w16a16": {"cosine": 0.9999},
    },
    "decoder": {
        "fp32": {"max_abs": 1e-3, "cosine": 0.999999, "tokens": 1.0},
        "fp16": {"max_abs": 1e-3, "cosine": 0.999999, "tokens": 1.0},
        "w8": {"cosine": 0.999},
        "w4": {"cosine": 0.999},
        "w16a16": {"cosine": 0.9999},
        "w4a16": {"cosine": 0.9999},
    },
}
WIDER = {
    "vision": {"fp16": ["fp32"], "w8a8": ["w8", "fp16", "fp32"]},
    "decoder": {"fp16": ["fp32"], "w8": ["fp16", "fp32"], "w4": ["w8", "fp16", "fp32"], "w4a16": ["w16a16"]},
}
# By its source, ONNX Runtime multiplies w4 by KleidiAI on ARM, which rounds a position at once: "row".
ACTIVATIONS = {
    "fp32": "none",
    "fp16": "none",
    "w8a8": "tensor",
    "w8": "block",
    "w4": "block",
    "w16a16": "none",
    "w4a16": "none",
}
GRIDS = {"w4": "float32", "w4a16": "float16"}
TOOLS = ("onnx-ir", "onnxruntime")
OPTIONS: dict[str, dict[str, Any]] = {}
_INLINE = 1 << 14  # bytes; a smaller initialiser stays in the graph file


def encoder(job: Job, module: Encoder) -> Written:
    model = trace.encoder(job.skeleton, module.view_shape)
    half = job.scheme in SCHEMES_IN_HALF
    lowering = Lowering(model, module.state_dict(), job.stored, job.importance, job.scales, half=half)
    return _written(job, lowering, "vision")


def decoder(job: Job, module: LanguageModel) -> Written:
    """By the names of the traced graph, in which the decoder is wrapped with its cache."""
    config = module.config
    model = trace.decoder(cast("LanguageModel", job.skeleton), config.context)
    cos, sin = config.rope.tables(config.context)
    state = {f"decoder.{name}": tensor for name, tensor in module.state_dict().items()}
    guides = [{f"decoder.{name}": own for name, own in found.items()} for found in (job.importance, job.scales)]
    state |= {"cos_cache": cos, "sin_cache": sin}
    half = job.scheme in SCHEMES_IN_HALF
    lowering = Lowering(model, state, lambda name: job.stored(name.removeprefix("decoder.")), *guides, half=half)
    written = _written(job, lowering, "decoder")
    table = embedding_table.write(module.embed_tokens.weight, STORAGE[job.scheme].table, job.folder)
    return written._replace(files=(*written.files, *table))


def bounds(job: Job) -> dict[str, float]:
    """Linear layers and the embedding table are halved, and what computes in halves is it all."""
    if job.scheme in SCHEMES_IN_HALF:
        return {name: HALF for name, _ in job.skeleton.named_parameters()}
    table = {"embed_tokens.weight": HALF} if isinstance(job.skeleton, LanguageModel) else {}
    return linear_bounds(job, {"fp16": HALF}) | (table if job.scheme == "fp16" else {})


def check(job: Job) -> None:
    """What ONNX Runtime's kernels do not take is refused."""
    if not isinstance(decoder := job.skeleton, LanguageModel):
        return
    config = decoder.config
    if config.head_dim % 16:
        raise EdgeError(
            f"ONNX Runtime's GroupQueryAttention takes heads of a multiple of 16; these are {config.head_dim} wide",
            hint="another --format",
        )
    if config.rope.width % 16:
        raise EdgeError(
            f"ONNX Runtime's GroupQueryAttention rotates a multiple of 16 features of a head; here it is rope of "
            f"{config.rope.width}",
            hint="another --format",
        )


def _written(job: Job, lowering: Lowering, name: str) -> Written:
    lowering.run(job.progress)
    if lowering.half:
        compute_in_half(lowering.model)
    return Written(_save(lowering.model, job.folder, name), *_tensors(lowering.model))


def _save(model: ir.Model, folder: Path, name: str) -> tuple[Path, ...]:
    path, data = folder / f"{name}.onnx", folder / f"{name}.onnx.data"
    model.producer_name = "edge-vlm"
    _forget(model)
    ir.save(model, path, external_data=data.name, size_threshold_bytes=_INLINE)
    if data.stat().st_size == 0:  # every initialiser was small
        data.unlink()
        return (path,)
    return path, data


def _forget(model: ir.Model) -> None:
    """The tracer notes where in which source file each node came from: this machine's paths, in a bundle for others."""
    values = [value for node in model.graph for value in node.outputs]
    for noted in (model, model.graph, *model.graph, *model.graph.inputs, *model.graph.initializers.values(), *values):
        noted.metadata_props.clear()


def _tensors(model: ir.Model) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    def spec(value: ir.Value) -> TensorSpec:
        assert value.name is not None and value.dtype is not None and value.shape is not None
        dims = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
        return TensorSpec(value.name, str(value.dtype.numpy()), dims)

    return tuple(map(spec, model.graph.inputs)), tuple(map(spec, model.graph.outputs))
