"""ExecuTorch programs for XNNPACK, with the methods that its own multimodal runner calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from edge.errors import CheckpointError
from edge.types import TensorSpec
from exporters.checkpoint import Checkpoint
from exporters.formats import FITTED, HALF, Progress, Written, products
from exporters.formats.executorch import lower
from exporters.formats.executorch.join import join
from exporters.formats.executorch.linears import Product, store
from exporters.formats.executorch.lower import Method
from exporters.formats.executorch.methods import TextDecoder, TokenEmbedding, VisionEncoder
from exporters.formats.executorch.survey import survey
from exporters.models.component import Component
from exporters.models.decoders import DecoderConfig, LanguageModel
from exporters.models.encoder import Encoder
from exporters.models.layers import Linear
from exporters.quantization import embedding_table

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
__all__ = ["join", "write"]
JOINED = "model.pte"  # what holds all methods


def write(
    component: Component,
    module: nn.Module,
    scheme: str,
    folder: Path,
    progress: Progress,
    importance: Mapping[str, Tensor] | None = None,
    *,
    checkpoint: Checkpoint,
) -> Written:
    """Write `module` (an Encoder or a decoder, float32) into `folder`. Afterwards it holds the weights as stored."""
    skeleton = component.skeleton()
    if isinstance(skeleton, Encoder):
        if component.role != "vision":
            return _beside(skeleton, module, component.role, folder, progress)
        return _encoder(skeleton, module, scheme, folder, progress, checkpoint)
    assert isinstance(skeleton, LanguageModel)
    return _decoder(skeleton, module, scheme, folder, progress, importance or {}, checkpoint)


def bounds(component: Component, scheme: str, tensor_types: Sequence[str] = ()) -> dict[str, float]:
    """Scales of 4-bit blocks have float16's range, and 7 of them are the largest weight. Where a backend computes in
    fp16, it halves whatever it is given."""
    skeleton = component.skeleton()
    if scheme == "fp16":
        return dict.fromkeys(skeleton.state_dict(), HALF)
    return products(skeleton, 7 / FITTED * HALF) if scheme == "8da4w" else {}


def _encoder(
    skeleton: Encoder, module: nn.Module, scheme: str, folder: Path, progress: Progress, checkpoint: Checkpoint
) -> Written:
    path, size = folder / "vision.pte", skeleton.image_size
    found = survey(skeleton)
    products = _fill(skeleton, module, scheme, {}, found.rows)
    method = Method(VisionEncoder(skeleton, found.widths), (torch.zeros(1, 3, size, size),))
    lower.write(path, {"vision_encoder": method}, {}, progress)
    _give_back(products, module)
    rows = checkpoint.spec.prompt.image_tokens, checkpoint.spec.decoder.hidden
    return Written(
        (path,),
        (TensorSpec("pixel_values", "float32", (1, 3, size, size)),),
        (TensorSpec("image_embeds", "float32", (1, *rows)),),
    )


def _beside(skeleton: Encoder, module: nn.Module, role: str, folder: Path, progress: Progress) -> Written:
    """The same encoder for the backend that the role names: `vision-coreml`."""
    path, size = folder / f"{role}.pte", skeleton.image_size
    skeleton.load_state_dict(module.state_dict(), assign=True)
    method = Method(VisionEncoder(skeleton, None), (torch.zeros(1, 3, size, size),))
    lower.write(path, {"vision_encoder": method}, {}, progress, role.removeprefix("vision-"))
    return Written((path,), (), ())


def _decoder(
    skeleton: LanguageModel,
    module: nn.Module,
    scheme: str,
    folder: Path,
    progress: Progress,
    importance: Mapping[str, Tensor],
    checkpoint: Checkpoint,
) -> Written:
    assert isinstance(module, LanguageModel)
    path, config = folder / "decoder.pte", module.config
    _require_vocabulary(checkpoint, config)
    found = survey(skeleton)
    products = _fill(skeleton, module, scheme, importance, found.rows)
    table, scales, stored = embedding_table.packed(module.embed_tokens.weight, scheme)
    module.embed_tokens.weight.copy_(stored)
    del stored  # as large as the table was
    some = min(8, config.context - 1)
    methods = {
        "token_embedding": Method(
            TokenEmbedding(table, scales), (torch.zeros(1, some, dtype=torch.int64),), _longest(config)
        ),
        "text_decoder": Method(
            TextDecoder(skeleton, found.widths),
            (torch.zeros(1, some, config.hidden), torch.tensor([0])),
            _longest(config),
        ),
    }
    lower.write(path, methods, _constants(checkpoint, config), progress)
    _give_back(products, module)
    return Written(
        (path,),
        (
            TensorSpec("inputs_embeds", "float32", (1, "sequence_length", config.hidden)),
            TensorSpec("input_pos", "int64", (1,)),
        ),
        (TensorSpec("logits", "float32", (1, 1, config.vocab)),),
    )


def _longest(config: DecoderConfig) -> int:
    """Positions that are computed at once: one less than the cache holds, or tracing takes it for the whole cache."""
    return config.context - 1


def _require_vocabulary(checkpoint: Checkpoint, config: DecoderConfig) -> None:
    """ExecuTorch's runner ends the process on a token that the table does not have."""
    tokenizer = json.loads(checkpoint.tokenizer_json())
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    if max(ids) >= config.vocab:
        raise CheckpointError(
            f"the tokenizer has the token {max(ids)}, and the embedding table has {config.vocab} rows",
            hint="is it this model's tokenizer? ExecuTorch's runner would end with the process",
        )


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
    scheme: str,
    importance: Mapping[str, Tensor],
    rows: Mapping[str, tuple[Tensor, ...]],
) -> dict[str, Product]:
    """Give a skeleton the module's numbers, its products stored in the scheme. The module's own weights of those are
    let go meanwhile."""
    products: dict[str, Product] = {}
    for path, parent in list(skeleton.named_modules()):
        for name, child in list(parent.named_children()):
            whole = f"{path}.{name}.weight" if path else f"{name}.weight"
            if isinstance(child, Linear):
                theirs = cast("Linear", module.get_submodule(whole.removesuffix(".weight")))
                stored = store(whole, theirs.weight.data, theirs.bias, scheme, importance.get(whole))
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
