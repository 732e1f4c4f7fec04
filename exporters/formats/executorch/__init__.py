"""ExecuTorch programs for XNNPACK, with the methods that its own multimodal runner calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from edge.bundle.manifest import Part, describe
from edge.errors import CheckpointError
from edge.types import TensorSpec
from exporters.formats import FITTED, HALF, Finished, Job, Written, float_specs, linear_bounds
from exporters.formats.executorch import lower
from exporters.formats.executorch.join import join
from exporters.formats.executorch.linears import STORAGE, Product, store
from exporters.formats.executorch.lower import Method
from exporters.formats.executorch.methods import TextDecoder, TokenEmbedding, VisionEncoder
from exporters.formats.executorch.survey import survey
from exporters.models.decoders import DecoderConfig, LanguageModel
from exporters.models.encoder import Encoder
from exporters.models.layers import Linear
from exporters.quantization import embedding_table
from exporters.sources.checkpoint import Checkpoint

# The tolerance is on the distance to torch on the same stored weights: where weights are integers, XNNPACK rounds what
# they are multiplied with to int8 for each position.
SCHEMES = {
    "vision": {
        "fp32": {"max_abs": 1e-3, "cosine": 0.999999},
        "w8a8": {"cosine": 0.9999},
    },
    "decoder": {
        "fp32": {"max_abs": 1e-3, "cosine": 0.999999, "tokens": 1.0},
        "w8": {"cosine": 0.999},
        "8da4w": {"cosine": 0.999},
    },
    # Beside the parts, handed to another backend. None of those runs here: written, and not proven.
    "vision-coreml": {"fp16": {}},
    "vision-mps": {"fp16": {}},
    "vision-vulkan": {"fp32": {}},
}
# No fp16: the partitioner leaves a product of two types of floats to slower kernels.
WIDER = {
    "vision": {"w8a8": ["fp32"]},
    "decoder": {"w8": ["fp32"], "8da4w": ["w8", "fp32"]},
}
ACTIVATIONS = {"fp32": "none", "fp16": "none", "w8a8": "row", "w8": "row", "8da4w": "row"}
GRIDS = {"8da4w": "positive"}
TOOLS = ("executorch",)
OPTIONS = {
    "split": {
        "default": False,
        "for": "ExecuTorch programs",
        "help": "An ExecuTorch program for each half, not one.",
    },
    "backend": {
        "default": (),
        "for": "ExecuTorch programs",
        "help": "coreml, mps, vulkan: ExecuTorch's encoder for it, too.",
        "metavar": "NAME",
        "adds": "vision-{}",
    },
}
JOINED = "model.pte"  # what holds all methods


def encoder(job: Job, module: Encoder) -> Written:
    """Any role but `vision` names another backend, which the same encoder is handed to: `vision-coreml`."""
    path, view = job.folder / f"{job.role}.pte", module.view_shape
    skeleton = cast("Encoder", job.component.blank())
    example = (torch.zeros(*view),)
    if job.role != "vision":
        skeleton.load_state_dict(module.state_dict(), assign=True)
        method = Method(VisionEncoder(skeleton, None), example)
        lower.write(path, {"vision_encoder": method}, {}, job.progress, job.role.removeprefix("vision-"))
        return Written((path,))
    found = survey(cast("Encoder", job.skeleton))
    linears = _fill(skeleton, module, job, found.rows)
    method = Method(VisionEncoder(skeleton, found.widths, found.tables), example)
    lower.write(path, {"vision_encoder": method}, {}, job.progress)
    _give_back(linears, module)
    rows = job.checkpoint.spec.prompt.image_tokens, job.checkpoint.spec.decoder.hidden
    return Written((path,), float_specs({"pixel_values": view}), float_specs({"image_embeds": (1, *rows)}))


def decoder(job: Job, module: LanguageModel) -> Written:
    path, config = job.folder / "decoder.pte", module.config
    skeleton, found = cast("LanguageModel", job.component.blank()), survey(cast("LanguageModel", job.skeleton))
    linears = _fill(skeleton, module, job, found.rows)
    table, scales, stored = embedding_table.packed(module.embed_tokens.weight, STORAGE[job.scheme].table)
    module.embed_tokens.weight.copy_(stored)
    del stored  # as large as the table was
    some = min(8, config.context - 1)
    methods = {
        "token_embedding": Method(
            TokenEmbedding(table, scales), (torch.zeros(1, some, dtype=torch.int64),), _longest(config)
        ),
        "text_decoder": Method(
            TextDecoder(skeleton, found.widths, capped=bool(found.caps)),
            (torch.zeros(1, some, config.hidden), torch.tensor([0])),
            _longest(config),
        ),
    }
    lower.write(path, methods, _constants(job.checkpoint, config), job.progress)
    _give_back(linears, module)
    inputs = float_specs({"inputs_embeds": (1, "sequence_length", config.hidden)})
    return Written(
        (path,), (*inputs, TensorSpec("input_pos", "int64", (1,))), float_specs({"logits": (1, 1, config.vocab)})
    )


def bounds(job: Job) -> dict[str, float]:
    """Scales of 4-bit blocks have float16's range, and 7 of them are the largest weight. Where a backend computes in
    fp16, it halves whatever it is given."""
    if job.scheme == "fp16":
        return dict.fromkeys(job.skeleton.state_dict(), HALF)
    return linear_bounds(job, {"8da4w": 7 / FITTED * HALF})


def check(job: Job) -> None:
    """ExecuTorch's runner ends the process on a token that the table does not have."""
    if not isinstance(skeleton := job.skeleton, LanguageModel):
        return
    tokenizer, rows = json.loads(job.checkpoint.tokenizer_json()), skeleton.config.vocab
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    if max(ids) >= rows:
        raise CheckpointError(
            f"the tokenizer has the token {max(ids)}, and the embedding table has {rows} rows",
            hint="is it this model's tokenizer? ExecuTorch's runner would end with the process",
        )


def finish(parts: Sequence[Part], folder: Path, options: Mapping[str, Any]) -> Finished:
    """All parts in one file, as ExecuTorch's own runner opens it, unless they are to stay as they are."""
    if len(parts) == 1 or options.get("split"):
        return Finished(tuple(parts))
    paths = [folder / part.files[0].path for part in parts]
    join(paths, folder / JOINED)
    for path in paths:
        path.unlink()
    whole = describe(folder, folder / JOINED)
    return Finished(tuple(replace(part, files=(whole,), bytes=part.files[0].bytes) for part in parts))


def _longest(config: DecoderConfig) -> int:
    """Positions that are computed at once: one less than the cache holds, or tracing takes it for the whole cache."""
    return config.context - 1


def _constants(checkpoint: Checkpoint, config: DecoderConfig) -> dict[str, Any]:
    """What the runner asks a program before it runs it."""
    prompt = checkpoint.spec.prompt
    return {
        "get_max_seq_len": _longest(config),
        "get_max_context_len": config.context,
        "get_vocab_size": config.vocab,
        "get_bos_id": prompt.bos_id if prompt.bos_id is not None else -1,
        "get_eos_ids": list(prompt.stop_ids),
        "get_n_layers": config.layers,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }


def _fill(
    skeleton: nn.Module,
    module: nn.Module,
    job: Job,
    rows: Mapping[str, tuple[Tensor, ...]],
) -> dict[str, Product]:
    """Give a skeleton the module's numbers, its products stored as the job has them. The module's own weights of those
    are let go meanwhile."""
    products: dict[str, Product] = {}
    for path, parent in list(skeleton.named_modules()):
        for name, child in list(parent.named_children()):
            whole = f"{path}.{name}.weight" if path else f"{name}.weight"
            if isinstance(child, Linear):
                theirs = cast("Linear", module.get_submodule(whole.removesuffix(".weight")))
                guides = job.importance.get(whole), job.scales.get(whole)
                stored = store(whole, theirs.weight.data, theirs.bias, job.stored(whole), *guides)
                products[whole] = Product(stored, rows.get(whole, ()))
                theirs.weight.data = torch.empty(0)
                setattr(parent, name, products[whole])
    others = {name: tensor for name, tensor in module.state_dict().items() if name in skeleton.state_dict()}
    skeleton.load_state_dict(others, strict=False, assign=True)
    return products


def _give_back(products: Mapping[str, Product], module: nn.Module) -> None:
    """The weights as stored, for the reference."""
    for name, product in products.items():
        module.get_parameter(name).data = product.dequantized()
        product.pieces = nn.ModuleList()  # both at once would be too much
