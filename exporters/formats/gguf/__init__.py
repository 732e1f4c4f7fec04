"""GGUF, for llama.cpp: the decoder, and beside it the encoder as llama.cpp's multimodal programs read it ("mmproj")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import gguf
import torch
from gguf import GGMLQuantizationType as Kind

from edge.errors import EdgeError
from edge.recipes import bytes_per_weight
from exporters.formats import BRAIN, FITTED, HALF, SINGLE, Job, Written
from exporters.gguf import decoder as decoders
from exporters.gguf import entries, imatrix, mmproj, names, packing, quantizer, tensor_types, vocabulary
from exporters.gguf.entries import Entry
from exporters.models.decoders import LanguageModel, family
from exporters.models.encoder import Encoder
from exporters.sources.checkpoint import Checkpoint

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
# By kinds of ggml, for one layer. Rows that no block of 256 divides take q8_0 for q6_k, as in a file of q6_k.
WIDER = {
    "decoder": {
        "f16": ["f32"],
        "bf16": ["f32"],
        "q8_0": ["f16", "f32"],
        "q6_k": ["q8_0", "f16", "f32"],
        "q5_k_m": ["q6_k", "q8_0", "f16", "f32"],
        "q5_k_s": ["q6_k", "q8_0", "f16", "f32"],
        "q4_k_m": ["q6_k", "q8_0", "f16", "f32"],
        "q4_k_s": ["q6_k", "q8_0", "f16", "f32"],
        "q4_0": ["q6_k", "q8_0", "f16", "f32"],
        "iq4_nl": ["q6_k", "q8_0", "f16", "f32"],
        "iq4_xs": ["q6_k", "q8_0", "f16", "f32"],
        "q3_k_m": ["q6_k", "q8_0", "f16", "f32"],
    },
    "mmproj": {"f16": ["f32"], "q8_0": ["f16", "f32"]},
}
# Of the kind that a scheme's name says: a mix may hold others, and the head of a rounded decoder is q6_k.
ACTIVATIONS = {
    "f32": "none",
    "f16": "none",
    "bf16": "none",
    "q8_0": "block",
    "q4_0": "block",
    "iq4_nl": "block",
    "q6_k": "superblock",
    "q5_k_m": "superblock",
    "q5_k_s": "superblock",
    "q4_k_m": "superblock",
    "q4_k_s": "superblock",
    "iq4_xs": "superblock",
    "q3_k_m": "superblock",
}
GRIDS = {"q4_0": "float16"}
TOOLS = ("gguf",)
OPTIONS = {
    "gguf_only": {
        "default": False,
        "for": "a GGUF decoder",
        "help": "Without the vision part that `edge run` uses.",
        "role": "decoder",
        "keeps": ("decoder", "mmproj"),
    },
    "mtmd_position_workaround": {
        "default": False,
        "for": "an mmproj",
        "help": "An mmproj for llama.cpp builds without #25844, and only those.",
        "role": "mmproj",
    },
    "tensor_type": {
        "default": (),
        "for": "a GGUF decoder",
        "help": "A kind for tensors of the decoder's GGUF file.",
        "metavar": "PATTERN=KIND",
        "role": "decoder",
        "custom": True,
    },
}
IMATRIX = "imatrix.gguf"


def encoder(job: Job, module: Encoder) -> Written:
    """`mtmd_position_workaround` is for builds of llama.cpp that put the class token last, and only those."""
    workaround = bool(job.options.get("mtmd_position_workaround"))
    path = job.folder / f"mmproj-{_name(job)}.gguf"
    spec = job.checkpoint.spec
    writer = entries.new_file(path, names.MMPROJ, job.checkpoint, _file_type(job.scheme))
    mmproj.describe(writer, module, spec.image, spec.decoder.hidden, workaround)
    found = mmproj.entries(module, workaround)
    own = _encoder_widened(job, module, found)
    entries.write(writer, found, lambda entry: own.get(entry.name, _encoder_kind(entry, job.scheme)), job.progress)
    entries.read_back(path, found)
    return Written((path,))


def decoder(job: Job, module: LanguageModel) -> Written:
    """One pass for what is packed here; else a file of the checkpoint's own width, for llama.cpp to quantise.

    An importance that was measured is written beside: llama.cpp's own tools take it too.
    """
    path, model, types = job.folder / f"{_name(job)}.gguf", _known(module), _types(job)
    wide = None if job.scheme in PACKED else path.with_suffix(".wide")
    kind, tables = (_width(job.checkpoint),) * 2 if wide else map(Kind.__getitem__, PACKED[job.scheme])
    found = decoders.entries(model, job.importance, job.scales)
    other = _other_kinds(job, model)
    now = {} if wide else other
    if wide:
        quantizer.library()  # what is missing is told before the work
    writer = entries.new_file(wide or path, family(model.config).ARCHITECTURE, job.checkpoint, _file_type(job.scheme))
    decoders.describe(writer, model.config)
    vocabulary.add(writer, job.checkpoint, model.config.vocab)
    if types:
        writer.add_array(names.TENSOR_TYPES, types)
    usual = {entry.name: tables if entry.name in decoders.TABLES else kind for entry in found}
    entries.write(writer, found, lambda entry: now.get(entry.name, usual[entry.name]), job.progress)
    if wide:
        quantizer.quantize(wide, path, _file_type(job.scheme), found, other)
        wide.unlink()
    entries.read_back(path, found)
    if model.config.tied:
        model.lm_head.weight.copy_(model.embed_tokens.weight)
    obeyed = {"tensor_type": list(types)} if types else {}
    if job.measured is None:
        return Written((path,), options=obeyed)
    imatrix.write(job.folder / IMATRIX, job.measured.importance, model.config, job.measured.conversations)
    return Written((path,), companions=(job.folder / IMATRIX,), options=obeyed)


def bounds(job: Job) -> dict[str, float]:
    """Of each parameter in the kind that it is stored as; vectors are float32."""
    if isinstance(skeleton := job.skeleton, Encoder):
        pieces = mmproj.entries(skeleton, position_workaround=False)
        own = _encoder_widened(job, skeleton, pieces)
        pairs = zip(skeleton.state_dict(), pieces, strict=True)
        return {name: _bound(e, own.get(e.name, _encoder_kind(e, job.scheme))) for name, e in pairs}
    model = _known(cast("LanguageModel", skeleton))
    kind, tables = map(Kind.__getitem__, PACKED.get(job.scheme, ("F16", "F16")))  # a quantiser's: as float16
    other, found = _other_kinds(job, model), {}
    for entry in decoders.entries(model, {}):
        usual = tables if entry.name in decoders.TABLES else kind
        found[entry.name] = _bound(entry, other.get(entry.name, usual))
    tensors = family(model.config).gguf_tensors(model.config)
    return {name: min(found[piece.name] for piece in pieces) for name, pieces in tensors.items()}


def check(job: Job) -> None:
    """That llama.cpp has this component's graph, and that each PATTERN=KIND decides about a tensor of a decoder."""
    if isinstance(skeleton := job.skeleton, Encoder):
        mmproj.require(skeleton)
    else:
        _other_kinds(job, _known(cast("LanguageModel", skeleton)))


def size(job: Job) -> int:
    """Bytes of its weights, those of kinds of their own among them."""
    usual = bytes_per_weight("gguf", job.scheme)
    total = usual * job.component.weights
    if isinstance(skeleton := job.skeleton, Encoder):
        found = mmproj.entries(skeleton, position_workaround=False)
        other = _encoder_widened(job, skeleton, found)
    else:
        model = _known(cast("LanguageModel", skeleton))
        found, other = decoders.entries(model, {}), _other_kinds(job, model)
    numbers = {entry.name: entry.tensor.numel() for entry in found}
    for name, kind in other.items():
        block, length = gguf.GGML_QUANT_SIZES[kind]
        total += numbers[name] * (length / block - usual)
    return int(total)


def apart(job: Job) -> dict[str, torch.Tensor]:
    """What PATTERN=KIND stores as anything but the 4-bit integers of q4_0."""
    model = _known(cast("LanguageModel", job.skeleton))
    return decoders.rows_of(model, {name for name, kind in _other_kinds(job, model).items() if kind != Kind.Q4_0})


def _bound(entry: Entry, kind: Kind) -> float:
    return _BOUNDS.get(packing.fitting(kind, tuple(entry.tensor.shape)), HALF)


def _encoder_kind(entry: Entry, scheme: str) -> Kind:
    """Positions are looked up and added: they are small, and no product averages their error."""
    return Kind.F16 if entry.name == names.POSITIONS else Kind[PACKED[scheme][0]]


def _encoder_widened(job: Job, module: Encoder, found: Sequence[Entry]) -> dict[str, Kind]:
    """Names in the file -> kinds of the layers that the job has wider; `found` are the module's entries."""
    named = dict(zip(module.state_dict(), found, strict=True))
    return {named[weight].name: _fitting(named[weight], scheme) for weight, scheme in job.widened.items()}


def _other_kinds(job: Job, model: LanguageModel) -> dict[str, Kind]:
    """Names in the file -> kinds that are not the scheme's: those of PATTERN=KIND, and before them those of the layers
    that the job has wider. A tied head is the embedding table."""
    found = {entry.name: entry for entry in decoders.entries(model, {})}
    tensors = family(model.config).gguf_tensors(model.config)
    own = {
        piece.name: _fitting(found[piece.name], scheme)
        for weight, scheme in job.widened.items()
        for piece in tensors.get(weight, tensors["embed_tokens.weight"])
    }
    return decoders.other_kinds(model, _types(job)) | own


def _fitting(entry: Entry, scheme: str) -> Kind:
    return packing.fitting(Kind[scheme.upper()], tuple(entry.tensor.shape))


def _known(module: LanguageModel) -> LanguageModel:
    """Refuses what llama.cpp would compute otherwise: it brings the graph itself."""
    if not isinstance(module, getattr(family(module.config), "Decoder", ())):
        raise EdgeError(
            f"GGUF: there is no graph of llama.cpp known for {type(module).__name__}, which the model uses",
            hint="another --format",
        )
    config = module.config
    if config.rope.width != family(config).gguf_settings(config).get(decoders.ROTATED, config.head_dim):
        raise EdgeError(
            f"GGUF: llama.cpp rotates whole heads of this decoder; here it is rope of {config.rope.width} features of "
            f"{config.head_dim}",
            hint="another --format",
        )
    return module


def _types(job: Job) -> tuple[str, ...]:
    """PATTERN=KIND, for tensors that are stored otherwise than the scheme has them."""
    legal = PACKED_KINDS + (() if job.scheme in PACKED else QUANTIZER_KINDS)
    return tuple(tensor_types.checked(word, legal) for word in job.options.get("tensor_type", ()))


def _name(job: Job) -> str:
    return f"{'-'.join(job.checkpoint.name.split())}-{job.scheme.upper()}"


def _file_type(scheme: str) -> gguf.LlamaFileType:
    return gguf.LlamaFileType[f"MOSTLY_{scheme.upper()}"]


def _width(checkpoint: Checkpoint) -> Kind:
    """A file of this type holds the decoder's matrices as they are; vectors are float32 in any."""
    keys = (key for source in checkpoint.components["decoder"].keys.values() for key in source.names)
    dtypes = {checkpoint.weights.dtype(key) for key in keys if len(checkpoint.weights.shape(key)) > 1}
    if dtypes == {torch.float16}:
        return Kind.F16
    return Kind.BF16 if dtypes == {torch.bfloat16} else Kind.F32
