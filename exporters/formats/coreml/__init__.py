"""Core ML packages for iOS 18 and macOS 15: the encoder, and the decoder with its memory as states."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import fx, nn

import edge
from edge.bundle.manifest import Part
from edge.decoders.stateful import DECODE, MASKED, PREFILL
from edge.errors import UsageError
from exporters.formats import HALF, Finished, Job, Written, float_specs, silent
from exporters.formats.coreml import fp16_overflow, functions, package, trace
from exporters.formats.coreml.functions import Recorded
from exporters.formats.coreml.weights import STORAGE, Weights
from exporters.mil import package as reading
from exporters.mil import placement
from exporters.mil.coremltools import TARGET, coremltools
from exporters.mil.program import Program
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
WIDER = {
    "vision": {"w8": ["fp16"], "w4": ["w8", "fp16"], "pal4": ["w8", "fp16"]},
    "decoder": {"w8": ["fp16"], "w4": ["w8", "fp16"], "pal4": ["w8", "fp16"]},
}
ACTIVATIONS = {"fp16": "none", "w8": "none", "w4": "none", "pal4": "none"}
GRIDS = {"w4": "float16"}
TOOLS = ("coremltools",)
OPTIONS = {
    "ane": {
        "default": False,
        "for": "Core ML packages",
        "help": "Core ML in the form that the neural engine likes.",
    },
    "compile": {
        "default": False,
        "for": "Core ML packages",
        "help": "Core ML packages compiled too; on a Mac.",
    },
}


def encoder(job: Job, module: Encoder) -> Written:
    """What overflows half precision on the job's samples is computed in fp32."""
    path, spec = job.folder / "Vision.mlpackage", job.checkpoint.spec
    rows, view = (spec.prompt.image_tokens, spec.decoder.hidden), spec.image.view_shape
    graph = trace.encoder(cast("Encoder", job.skeleton))
    recorded = _recorded(job, graph, module, module, package.weights_folder(path))
    written = [functions.encode(recorded, view, rows, job.progress)]
    if spec.image.patches is None:  # no picture of one size: patches and their places
        written.append(functions.encode_image(recorded, spec.image, rows, silent))
    files = package.write(path, written, recorded.weights, _metadata(job, "the picture encoder"))
    return Written(
        files,
        float_specs({"pixel_values": view}),
        float_specs({"image_embeds": (1, *rows)}),
        _details(path, written, recorded),
        options=_obeyed(job),
    )


def decoder(job: Job, module: LanguageModel) -> Written:
    """As `encoder`; the importance guides the rounding of 4-bit weights that are not rounded already."""
    path, config = job.folder / "Decoder.mlpackage", module.config
    graph, root = trace.decoder(cast("LanguageModel", job.skeleton)), trace.WithMemory(module)
    recorded = _recorded(job, graph, module, root, package.weights_folder(path))
    written = [
        functions.decode(recorded, config, PREFILL, None, job.progress),
        functions.decode(recorded, config, DECODE, 1, silent),
    ]
    files = package.write(path, written, recorded.weights, _metadata(job, "the decoder"))
    files += embedding_table.write(module.embed_tokens.weight, STORAGE[job.scheme].table, job.folder)
    new, total = "sequence_length", "total_sequence_length"
    return Written(
        files,
        float_specs({"inputs_embeds": (1, new, config.hidden), "causal_mask": (1, 1, new, total)}),
        float_specs({"logits": (1, 1, config.vocab)}),
        _details(path, written, recorded),
        options=_obeyed(job),
    )


def bounds(job: Job) -> dict[str, float]:
    """A package holds nothing wider than float16, and integers become that; the embedding table beside it may."""
    names = [name for name in job.skeleton.state_dict() if name != "embed_tokens.weight" or job.scheme == "fp16"]
    return dict.fromkeys(names, HALF)


def check(job: Job) -> None:
    if job.options.get("compile") and sys.platform != "darwin":
        raise UsageError(
            "--compile needs Apple's compiler, which is on a Mac only",
            hint="leave it out: Xcode compiles a package, and so does an app that loads it",
        )


def finish(parts: Sequence[Part], folder: Path, options: Mapping[str, Any]) -> Finished:
    """With `compile`, packages as Apple's compiler makes them, beside them: what an app loads without a wait."""
    if not options.get("compile"):
        return Finished(tuple(parts))
    files: list[Path] = []
    for found in sorted(folder.glob("*.mlpackage")):
        made = Path(coremltools.models.utils.compile_model(str(found), str(found.with_suffix(".mlmodelc"))))
        files += [path for path in sorted(made.rglob("*")) if path.is_file()]
    return Finished(tuple(parts), tuple(files))


def _recorded(job: Job, graph: fx.Graph, module: nn.Module, root: nn.Module, folder: Path) -> Recorded:
    """`root` holds the numbers under the graph's names: the module itself, or what has it as `decoder`."""
    ane, within = bool(job.options.get("ane")), "" if module is root else "decoder."
    importance, scales = (
        {f"{within}{name}": own for name, own in found.items()} for found in (job.importance, job.scales)
    )

    def scheme(name: str) -> str:
        return job.stored(name.removeprefix(within))

    weights = Weights(root.state_dict(), scheme, importance, scales, folder, convolutions=ane)
    return Recorded(graph, root, weights, fp16_overflow.wide(graph, module, job.samples), ane)


def _obeyed(job: Job) -> dict[str, Any]:
    """`compile` changes no part."""
    return {"ane": True} if job.options.get("ane") else {}


def _metadata(job: Job, what: str) -> package.Metadata:
    checkpoint = job.checkpoint
    return package.Metadata(
        description=f"{checkpoint.name}: {what}, {job.scheme}",
        author="edge-vlm",
        license=checkpoint.license,
        version=edge.__version__,
        more={"source.sha256": checkpoint.sha256},
    )


def _details(path: Path, written: Sequence[Any], recorded: Recorded) -> dict[str, Any]:
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
        "weights": dict(Counter(recorded.weights.kinds.values())),
        "fp32": recorded.wide,
        "layout": "channels first" if recorded.channels_first else "rows",
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
