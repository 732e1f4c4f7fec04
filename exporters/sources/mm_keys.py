"""The keys that LLaVA's code writes into config.json: which are read, which change nothing, and which are refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from edge.errors import CheckpointError

FITS: dict[str | None, Literal["pad", "crop"]] = {"pad": "pad", None: "crop", "square": "crop"}
READ = ("mm_vision_tower", "mm_projector_type", "mm_hidden_size", "mm_vision_select_layer", "mm_vision_select_feature")
# How the training went, and a token that no prompt holds. Beside them stand tune_*, freeze_* and use_mm_proj; and
# image_grid_pinpoints and image_*_resolution, which count only for the image_aspect_ratios that are refused.
IRRELEVANT = ("mm_projector_lr", "mm_vision_tower_lr", "mm_tunable_parts", "mm_use_im_patch_token")
NEUTRAL = {"mm_patch_merge_type": "flat"}
WHY = {
    "mm_use_im_start_end": "images between special tokens",
    "mm_resampler_type": "a resampler between vision encoder and projector",
    "mm_patch_merge_type": "images in tiles",
    "s2": "features of several image sizes",
    "use_s2": "features of several image sizes",
}


def refuse(config: Mapping[str, Any], own: Collection[str] = ()) -> None:
    """What would make another model if it were passed over; the projector reads its `own` keys itself. Raises
    CheckpointError that names the key."""
    if config.get("quantization_config"):
        raise CheckpointError("the checkpoint is quantised already", hint="give the one in float16 or bfloat16")
    for key, value in config.items():
        asks = key in ("s2", "use_s2") or (key.startswith("mm_") and key not in (*READ, *IRRELEVANT, *own))
        if asks and value and value != NEUTRAL.get(key):
            what = WHY.get(key, "a part of the model that is unknown here")
            neutral = NEUTRAL.get(key, "false or null")
            raise CheckpointError(
                f"config.json has {key} {value!r}, which is not supported: {what}",
                hint=f"checkpoints trained with {neutral}, as MobileVLM and LLaVA-1.5",
            )
    if (fit := config.get("image_aspect_ratio")) not in tuple(FITS):
        raise CheckpointError(f"image_aspect_ratio {fit!r} is not supported", hint="one of: pad, square, or none")
