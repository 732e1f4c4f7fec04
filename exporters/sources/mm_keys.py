"""The keys that LLaVA's code writes into config.json: which are read, which change nothing, and which are refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from edge.errors import CheckpointError

FITS: dict[str | None, Literal["pad", "crop"]] = {"pad": "pad", None: "crop", "square": "crop"}
READ = ("mm_vision_tower", "mm_projector_type", "mm_hidden_size", "mm_vision_select_layer", "mm_vision_select_feature")
# How the training went, a token that no prompt holds, and how videos are seen. Beside them stand tune_*, freeze_* and
# use_mm_proj; and image_*_resolution, which count only for the image_aspect_ratios that are refused.
IRRELEVANT = (
    "mm_projector_lr",
    "mm_vision_tower_lr",
    "mm_tunable_parts",
    "mm_use_im_patch_token",
    "mm_newline_position",
    "mm_spatial_pool_mode",
)
NEUTRAL = {"mm_patch_merge_type": "flat"}
UNPAD = "spatial_unpad"  # of mm_patch_merge_type: lines of embeddings, with a newline behind each
WHY = {
    "mm_use_im_start_end": "images between special tokens",
    "mm_resampler_type": "a resampler between vision encoder and projector",
    "mm_patch_merge_type": "images in tiles",
    "s2": "features of several image sizes",
    "use_s2": "features of several image sizes",
}


def refuse(config: Mapping[str, Any], own: Collection[str] = (), *, tiles: bool) -> None:
    """What would make another model if it were passed over; the projector reads its `own` keys itself. With `tiles` the
    code of the family divides images. Raises CheckpointError that names the key."""
    if config.get("quantization_config"):
        raise CheckpointError("the checkpoint is quantised already", hint="give the one in float16 or bfloat16")
    for key, value in config.items():
        asks = key in ("s2", "use_s2") or (key.startswith("mm_") and key not in (*READ, *IRRELEVANT, *own))
        if tiles and (key, value) == ("mm_patch_merge_type", UNPAD):
            continue
        if asks and value and value != NEUTRAL.get(key):
            what = WHY.get(key, "a part of the model that is unknown here")
            neutral = NEUTRAL.get(key, "false or null")
            raise CheckpointError(
                f"config.json has {key} {value!r}, which is not supported: {what}",
                hint=f"checkpoints trained with {neutral}, as MobileVLM and LLaVA-1.5",
            )
    fit = config.get("image_aspect_ratio")
    divided = tiles and str(fit).startswith("anyres")
    if divided and config.get("mm_patch_merge_type") != UNPAD:
        merged = config.get("mm_patch_merge_type")
        raise CheckpointError(
            f"image_aspect_ratio is {fit!r}, and mm_patch_merge_type {merged!r}: tiles without newlines",
            hint=f"checkpoints trained with {UNPAD}, as LLaVA-NeXT and LLaVA-OneVision",
        )
    if fit not in tuple(FITS) and not divided:
        hint = "one of: pad, square, or none" + ", anyres, anyres_max_N" * tiles
        raise CheckpointError(f"image_aspect_ratio {fit!r} is not supported", hint=hint)
