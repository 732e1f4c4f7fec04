"""Core ML packages for iOS 18 and macOS 15: the encoder, and the decoder with its memory as states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn

import edge
from edge.decoders.stateful import DECODE, MASKED, PREFILL
from edge.types import TensorSpec
from exporters.checkpoint import Checkpoint
from exporters.formats import HALF, Progress, Written
from exporters.formats.coreml import fp16_overflow as ranges
from exporters.formats.coreml import functions, package, trace
from exporters.formats.coreml.functions import Recorded
from exporters.formats.coreml.weights import Weights
from exporters.mil import package as reading
from exporters.mil import placement
from exporters.mil.coremltools import TARGET
from exporters.mil.program import Program
from exporters.models.component import Component
from exporters.models.decoders import LanguageModel
from exporters.models.encoder import Encoder
from exporters.quantization import embedding_table

# The tolerance is on the distance to torch on the same stored weights: what stays above zero is half precision, each
# operation's result rounded.
SCHEMES = {
    "vision": {
        "fp16": {"cosine": 0.9999},
        "w8": {"cosine": 0.9999},
        "w4": {"cosine": 0.9999},
        "pal4": {"cosine": 0.9999},
    },
    "decoder": {
        "fp16": {"cosine": 0.9999},
        "w8": {"cosine": 0.9999},
        "w4": {"cosine": 0.9999},
        "pal4": {"cosine": 0.9999},
    },
}
SAMPLES = 8  # to see what overflows half precision: each costs a pass through torch


def write(
    component: Component,
    module: nn.Module,
    scheme: str,
    folder: Path,
    progress: Progress,
    importance: Mapping[str, Tensor] | None = None,
    *,
    checkpoint: Checkpoint,
    samples: Sequence[Tensor] = (),
    ane: bool = False,
) -> Written:
    """Write `module` (an Encoder or a decoder, float32) into `folder`. Afterwards it holds the weights as stored.

    What overflows half precision on `samples` is computed in fp32. `importance` guides the rounding of 4-bit weights.
    `ane`: in the form that the neural engine likes.
    """
    skeleton = component.skeleton()
    if isinstance(skeleton, Encoder):
        assert isinstance(module, Encoder)
        return _encoder(trace.encoder(skeleton), module, scheme, folder, progress, checkpoint, samples, ane)
    assert isinstance(skeleton, LanguageModel)
    assert isinstance(module, LanguageModel)
    matters = importance or {}
    return _decoder(trace.decoder(skeleton), module, scheme, folder, progress, matters, checkpoint, samples, ane)


def bounds(component: Component, scheme: str, tensor_types: Sequence[str] = ()) -> dict[str, float]:
    """A package holds nothing wider than float16, and integers become that; the embedding table beside it may."""
    names = [name for name in component.skeleton().state_dict() if name != "embed_tokens.weight" or scheme == "fp16"]
    return dict.fromkeys(names, HALF)


def _encoder(
    graph: fx.Graph,
    module: Encoder,
    scheme: str,
    folder: Path,
    progress: Progress,
    checkpoint: Checkpoint,
    samples: Sequence[Tensor],
    ane: bool,
) -> Written:
    path = folder / "Vision.mlpackage"
    spec = checkpoint.spec
    rows = spec.prompt.image_tokens, spec.decoder.hidden
    weights = Weights(module.state_dict(), scheme, {}, package.weights_folder(path), convolutions=ane)
    wide = ranges.wide(graph, module, samples)
    recorded = Recorded(graph, module, weights, wide.keys(), ane)
    written = [
        functions.encode(recorded, spec.image.size, rows, progress),
        functions.encode_image(recorded, spec.image, rows, lambda done: None),
    ]
    files = package.write(path, written, weights, _metadata(checkpoint, "the picture encoder", scheme))
    size = spec.image.size
    return Written(
        files,
        (TensorSpec("pixel_values", "float32", (1, 3, size, size)),),
        (TensorSpec("image_embeds", "float32", (1, *rows)),),
        _details(path, written, wide, weights, ane),
    )


def _decoder(
    graph: fx.Graph,
    module: LanguageModel,
    scheme: str,
    folder: Path,
    progress: Progress,
    importance: Mapping[str, Tensor],
    checkpoint: Checkpoint,
    samples: Sequence[Tensor],
    ane: bool,
) -> Written:
    path = folder / "Decoder.mlpackage"
    config = module.config
    root = trace.WithMemory(module)
    known = {f"decoder.{name}": value for name, value in importance.items()}
    weights = Weights(root.state_dict(), scheme, known, package.weights_folder(path), convolutions=ane)
    wide = ranges.wide(graph, module, samples)
    recorded = Recorded(graph, root, weights, wide.keys(), ane)
    written = [
        functions.decode(recorded, config, PREFILL, None, progress),
        functions.decode(recorded, config, DECODE, 1, lambda done: None),
    ]
    files = package.write(path, written, weights, _metadata(checkpoint, "the decoder", scheme))
    files += embedding_table.write(module.embed_tokens.weight, scheme, folder)
    new, total = "sequence_length", "total_sequence_length"
    return Written(
        files,
        (
            TensorSpec("inputs_embeds", "float32", (1, new, config.hidden)),
            TensorSpec("causal_mask", "float32", (1, 1, new, total)),
        ),
        (TensorSpec("logits", "float32", (1, 1, config.vocab)),),
        _details(path, written, wide, weights, ane),
    )


def _metadata(checkpoint: Checkpoint, what: str, scheme: str) -> package.Metadata:
    return package.Metadata(
        description=f"{checkpoint.name}: {what}, {scheme}",
        author="edge-vlm",
        license=checkpoint.license,
        version=edge.__version__,
        more={"source.sha256": checkpoint.sha256},
    )


def _details(
    path: Path, written: Sequence[Any], wide: Mapping[str, float], weights: Weights, ane: bool
) -> dict[str, Any]:
    """What an app must know, and what was decided. `fp32` names what overflowed half precision, with its largest."""
    first = written[0][1]
    program = Program(reading.read(path))
    details: dict[str, Any] = {
        "minimum": {"ios": "18.0", "macos": "15.0"},
        "specification": int(TARGET),
        "default_function": first.name,
        "functions": {
            description.name: {
                "inputs": [_feature(feature) for feature in description.input],
                "outputs": [_feature(feature) for feature in description.output],
            }
            for _, description in written
        },
        "weights": dict(Counter(weights.kinds.values())),
        "fp32": wide,
        "layout": "channels first" if ane else "rows",
        "predicted_placement": {name: placement.counted(name, program.function(name)) for name in program.names},
    }
    if first.state:
        states = [(feature.name, feature.type.stateType.arrayType.shape) for feature in first.state]
        details["states"] = [{"name": name, "dtype": "float16", "shape": list(shape)} for name, shape in states]
        details["masked"] = MASKED
    return details


def _feature(feature: Any) -> dict[str, Any]:
    """As Swift sees it: an image, or numbers whose flexible axes are [least, most]."""
    if feature.type.WhichOneof("Type") == "imageType":
        return {"name": feature.name, "image": "RGB", "shape": [feature.type.imageType.height] * 2}
    array = feature.type.multiArrayType
    ranges = [(size.lowerBound, size.upperBound) for size in array.shapeRange.sizeRanges]
    flexible = [low if low == high else [low, high] for low, high in ranges]
    return {"name": feature.name, "dtype": "float32", "shape": flexible or list(array.shape)}
