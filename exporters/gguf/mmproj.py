"""Tower and projector under the names that llama.cpp's multimodal library looks for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import cast

import gguf

from edge.errors import EdgeError
from edge.spec import ImageSpec
from exporters.gguf.entries import Entry
from exporters.gguf.names import FEATURE_LAYER, GRID, POSITIONS, WORKAROUND
from exporters.models.encoder import Encoder
from exporters.models.projectors import ldpnet, ldpnetv2, mlp
from exporters.models.vision.clip import Tower

# (projector, its name there, our names -> theirs)
KNOWN: tuple[tuple[ModuleType, str, tuple[str, str]], ...] = (
    (ldpnetv2, "ldpv2", (r"(mlp|peg)\.\1", r"mm.model.\1")),
    (ldpnet, "ldp", (r"model", "mm.model")),
    (mlp, "mlp", (r"", "mm.")),
)
DEPTH = 2  # the MLP's layers: the loader does not compute a third, and puts a single one through a GELU
NAMES = (
    (r"embeddings\.class_embedding", "class_embd"),
    (r"embeddings\.patch_embedding", "patch_embd"),
    (r"embeddings\.position_embedding", "position_embd"),
    (r"pre_layrnorm", "pre_ln"),
    (r"layers\.(\d+)\.layer_norm([12])", r"blk.\1.ln\2"),
    (r"layers\.(\d+)\.self_attn\.([qkv])_proj", r"blk.\1.attn_\2"),
    (r"layers\.(\d+)\.self_attn\.out_proj", r"blk.\1.attn_out"),
    (r"layers\.(\d+)\.mlp\.fc1", r"blk.\1.ffn_up"),
    (r"layers\.(\d+)\.mlp\.fc2", r"blk.\1.ffn_down"),
)


def describe(
    writer: gguf.GGUFWriter, encoder: Encoder, image: ImageSpec, hidden: int, position_workaround: bool
) -> None:
    """`hidden` is the decoder's width. Raises EdgeError as `require`."""
    require(encoder)
    c, (projector, _) = _tower(encoder).config, _projector(encoder)
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_clip_has_vision_encoder(True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_clip_projector_type(projector)
    writer.add_vision_image_size(c.image_size)
    writer.add_vision_patch_size(c.patch_size)
    writer.add_vision_embedding_length(c.hidden)
    writer.add_vision_feed_forward_length(c.ffn)
    writer.add_vision_projection_dim(hidden)
    writer.add_vision_head_count(c.heads)
    writer.add_vision_attention_layernorm_eps(c.eps)
    writer.add_vision_block_count(c.run_layers)
    # Without it the loader leaves the last of these layers out, which it takes for the one beyond the chosen.
    writer.add_array(FEATURE_LAYER, [c.run_layers])
    writer.add_vision_image_mean(image.mean)
    writer.add_vision_image_std(image.std)
    writer.add_bool("clip.use_gelu", c.activation == "gelu")
    if position_workaround:
        writer.add_bool(WORKAROUND, True)


def require(encoder: Encoder) -> None:
    """Raises EdgeError for what llama.cpp does not compute; no number is read."""
    c, (projector, _) = _tower(encoder).config, _projector(encoder)
    if c.select_feature != "patch":
        raise _refused(f"a class token's row before the patches (mm_vision_select_feature is {c.select_feature!r})")
    if projector != "mlp" and c.grid != GRID:
        raise _refused(
            f"the projector {projector} on a grid of {c.grid}x{c.grid} patches, as images of {c.image_size} in patches "
            f"of {c.patch_size} have it: it takes {GRID}x{GRID} only"
        )


def entries(encoder: Encoder, position_workaround: bool) -> list[Entry]:
    """With the workaround each position lies one row earlier, the class token's last: where the builds look for it that
    put the class token last (llama.cpp #25817)."""
    found = [*_tower_entries(_tower(encoder)), *_projector_entries(encoder)]
    return [replace(e, first=int(position_workaround and e.name == POSITIONS)) for e in found]


def _tower(encoder: Encoder) -> Tower:
    return cast("Tower", encoder.tower)


def tower_name(name: str) -> str:
    """Of a tower's parameter, in the file."""
    theirs = (re.sub(pattern, there, name) for pattern, there in NAMES if re.match(rf"{pattern}(\.|$)", name))
    return f"v.{next(theirs)}"


def projector_name(name: str, names: tuple[str, str]) -> str:
    """Of a projector's parameter, in the file; `names` as KNOWN has them."""
    return re.sub(f"^{names[0]}", names[1], name)


def _tower_entries(tower: Tower) -> Iterator[Entry]:
    for name, tensor in tower.state_dict().items():
        yield Entry(tower_name(name), tensor)


def _projector_entries(encoder: Encoder) -> Iterator[Entry]:
    _, names = _projector(encoder)
    for name, tensor in encoder.projector.state_dict().items():
        if tensor.ndim == 4:  # [C, 1, 3, 3] of a depthwise convolution, [N, K, 1, 1] of a pointwise one
            tensor = tensor[:, 0] if tensor.shape[1] == 1 else tensor[:, :, 0, 0]
        yield Entry(projector_name(name, names), tensor)


def _projector(encoder: Encoder) -> tuple[str, tuple[str, str]]:
    found = encoder.projector
    for module, name, names in KNOWN:
        if isinstance(found, module.Projector) and (
            module is not mlp or len(cast("mlp.Projector", found)) == 2 * DEPTH - 1
        ):
            return name, names
    kind, depth = type(found).__module__.rpartition(".")[2], sum("weight" in key for key in found.state_dict())
    raise _refused(f"the projector {kind} of depth {depth}: it takes an MLP of depth {DEPTH}")


def _refused(what: str) -> EdgeError:
    return EdgeError(
        f"an mmproj is for llama.cpp, which does not compute {what}",
        hint="--recipe onnx-w8a8-gguf-q4_0 writes the vision encoder as ONNX, and no mmproj",
    )
