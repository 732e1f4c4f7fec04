"""GGUF, for llama.cpp: the decoder, and beside it the encoder as llama.cpp's multimodal programs read it ("mmproj")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor, nn

from exporters.checkpoint import Checkpoint
from exporters.formats import BRAIN, FITTED, HALF, SINGLE, Progress, Written
from exporters.gguf import decoder, entries, mmproj, names, packing, quantizer, vocabulary
from exporters.gguf.entries import Entry
from exporters.models.component import Component
from exporters.models.decoders import LanguageModel, family
from exporters.models.encoder import Encoder

# The tolerance is on the distance to torch on the same stored weights: the kernels round activations to the weights'
# own kind, float16 or int8. No engine of ours opens the mmproj.
SCHEMES = {
    "decoder": {
        "f16": {"cosine": 0.9999},
        "bf16": {"cosine": 0.9995},
        "q8_0": {"cosine": 0.999},
        "q6_k": {"cosine": 0.999},
        "q5_k_m": {"cosine": 0.999},
        "q5_k_s": {"cosine": 0.999},
        "q4_k_m": {"cosine": 0.999},
        "q4_k_s": {"cosine": 0.999},
        "q4_0": {"cosine": 0.999},
        "iq4_nl": {"cosine": 0.999},
        "iq4_xs": {"cosine": 0.999},
        "q3_k_m": {"cosine": 0.999},
    },
    "mmproj": {"f16": {}, "q8_0": {}},
}
# What is packed here. A rounded decoder keeps its tables wider: an error there is in every token.
PACKED = {
    "f16": ("F16", "F16"),
    "bf16": ("BF16", "BF16"),
    "q8_0": ("Q8_0", "Q8_0"),
    "q4_0": ("Q4_0", "Q6_K"),
}
# What single tensors may be instead; the quantiser's only in its own schemes. Those that llama.cpp makes with an
# importance matrix only are not among them.
PACKED_KINDS = ("f32", "f16", "bf16", "q8_0", "q6_k", "q4_0")
QUANTIZER_KINDS = ("q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "iq4_nl", "iq4_xs", "q3_k", "iq3_s", "q2_k")
# The scales of all block layouts are float16. What llama.cpp's quantiser keeps in them is its own business: HALF.
_BOUNDS = {
    Kind.F32: SINGLE,
    Kind.BF16: BRAIN,
    Kind.F16: HALF,
    Kind.Q8_0: 127 * HALF,
    Kind.Q6_K: 32 * 127 * HALF,
    Kind.Q4_0: 8 / FITTED * HALF,
}


def write(
    component: Component,
    module: nn.Module,
    scheme: str,
    folder: Path,
    progress: Progress,
    importance: Mapping[str, Tensor] | None = None,
    *,
    checkpoint: Checkpoint,
    position_workaround: bool = False,
    tensor_types: Sequence[str] = (),
) -> Written:
    """Write `module` (an Encoder or a decoder, float32) into `folder`. Afterwards it holds the weights as stored.

    `position_workaround` is the encoder's: for builds of llama.cpp that put the class token last, and only those.
    `tensor_types` is the decoder's: PATTERN=KIND, for tensors that are stored otherwise than the scheme has them.
    """
    name = "-".join(checkpoint.name.split())
    if isinstance(module, Encoder):
        path = folder / f"mmproj-{name}-{scheme.upper()}.gguf"
        _encoder(module, scheme, path, progress, checkpoint, position_workaround)
    else:
        assert isinstance(module, LanguageModel)
        path = folder / f"{name}-{scheme.upper()}.gguf"
        _decoder(module, scheme, path, progress, decoder.entries(module, importance or {}), checkpoint, tensor_types)
    return Written((path,), (), ())


def bounds(component: Component, scheme: str, tensor_types: Sequence[str] = ()) -> dict[str, float]:
    """Of each parameter in the kind that it is stored as; vectors are float32."""
    skeleton = component.skeleton()
    if isinstance(skeleton, Encoder):
        pairs = zip(skeleton.state_dict(), mmproj.entries(skeleton, position_workaround=False), strict=True)
        return {name: _bound(entry, _encoder_kind(entry, scheme)) for name, entry in pairs}
    assert isinstance(skeleton, LanguageModel)
    kind, tables = map(Kind.__getitem__, PACKED.get(scheme, ("F16", "F16")))  # a quantiser's: as float16
    other = decoder.other_kinds(skeleton, tensor_types)
    found = {}
    for entry in decoder.entries(skeleton, {}):
        usual = tables if entry.name in decoder.TABLES else kind
        found[entry.name] = _bound(entry, other.get(entry.name, usual))
    tensors = family(skeleton.config).gguf_tensors(skeleton.config)
    return {name: min(found[piece.name] for piece in pieces) for name, pieces in tensors.items()}


def _bound(entry: Entry, kind: Kind) -> float:
    return _BOUNDS.get(packing.fitting(kind, tuple(entry.tensor.shape)), HALF)


def _encoder_kind(entry: Entry, scheme: str) -> Kind:
    """Positions are looked up and added: they are small, and no product averages their error."""
    return Kind.F16 if entry.name == names.POSITIONS else Kind[PACKED[scheme][0]]


def _encoder(
    module: Encoder, scheme: str, path: Path, progress: Progress, checkpoint: Checkpoint, position_workaround: bool
) -> None:
    writer = entries.new_file(path, names.MMPROJ, checkpoint, _file_type(scheme))
    mmproj.describe(writer, module, checkpoint.spec.image, checkpoint.spec.decoder.hidden, position_workaround)
    found = mmproj.entries(module, position_workaround)
    entries.write(writer, found, lambda entry: _encoder_kind(entry, scheme), progress)
    entries.read_back(path, found)


def _decoder(
    module: LanguageModel,
    scheme: str,
    path: Path,
    progress: Progress,
    found: Sequence[Entry],
    checkpoint: Checkpoint,
    tensor_types: Sequence[str],
) -> None:
    """One pass for what is packed here; else a file of the checkpoint's own width, for llama.cpp to quantise."""
    wide = None if scheme in PACKED else path.with_suffix(".wide")
    kind, tables = (_width(checkpoint),) * 2 if wide else map(Kind.__getitem__, PACKED[scheme])
    other = decoder.other_kinds(module, tensor_types)
    now = {} if wide else other
    if wide:
        quantizer.library()  # what is missing is told before the work
    writer = entries.new_file(wide or path, family(module.config).ARCHITECTURE, checkpoint, _file_type(scheme))
    decoder.describe(writer, module.config)
    vocabulary.add(writer, checkpoint, module.config.vocab)
    if tensor_types:
        writer.add_array(names.TENSOR_TYPES, tensor_types)
    usual = {entry.name: tables if entry.name in decoder.TABLES else kind for entry in found}
    entries.write(writer, found, lambda entry: now.get(entry.name, usual[entry.name]), progress)
    if wide:
        quantizer.quantize(wide, path, _file_type(scheme), found, other)
        wide.unlink()
    entries.read_back(path, found)
    if module.config.tied:
        module.lm_head.weight.copy_(module.embed_tokens.weight)


def _file_type(scheme: str) -> gguf.LlamaFileType:
    return gguf.LlamaFileType[f"MOSTLY_{scheme.upper()}"]


def _width(checkpoint: Checkpoint) -> Kind:
    """A file of this type holds the decoder's matrices as they are; vectors are float32 in any."""
    keys = (key for source in checkpoint.components["decoder"].keys.values() for key in source.names)
    dtypes = {checkpoint.weights.dtype(key) for key in keys if len(checkpoint.weights.shape(key)) > 1}
    if dtypes == {torch.float16}:
        return Kind.F16
    return Kind.BF16 if dtypes == {torch.bfloat16} else Kind.F32
