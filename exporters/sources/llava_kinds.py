"""What transformers presets in the configs of LlavaForConditionalGeneration and its kin, by `model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from exporters.sources import anyres

DEFAULTS: Mapping[str, Any] = {  # transformers' LlavaConfig
    "image_token_index": 32000,
    "image_seq_length": 576,
    "projector_hidden_act": "gelu",
    "vision_feature_select_strategy": "default",
    "vision_feature_layer": -2,
    "multimodal_projector_bias": True,
    "tie_word_embeddings": False,
}
VISION: Mapping[str, Any] = {  # where there is no vision_config at all
    "model_type": "clip_vision_model",
    "intermediate_size": 4096,
    "hidden_size": 1024,
    "patch_size": 14,
    "image_size": 336,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}


class Kind(NamedTuple):
    """What a model_type presets."""

    defaults: Mapping[str, Any]
    vision: Mapping[str, Any]  # where there is no vision_config at all
    text: str  # the model_type of a text_config that names none
    processor: str | None  # of tiles; None: one view, as the vision encoder's own


KINDS = {
    "llava": Kind(DEFAULTS, VISION, "llama", None),
    "llava_next": Kind({**DEFAULTS, anyres.POINTS: anyres.NEXT_POINTS}, VISION, "llama", anyres.NEXT),
    "llava_onevision": Kind(
        {
            **{name: value for name, value in DEFAULTS.items() if name != "image_seq_length"},
            "image_token_index": 151646,
            "video_token_index": 151647,
            "vision_feature_select_strategy": "full",
            "vision_feature_layer": -1,
            "vision_aspect_ratio": "anyres_max_9",
            anyres.POINTS: anyres.ONEVISION_POINTS,
        },
        {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "patch_size": 14,
            "image_size": 384,
            "num_hidden_layers": 26,
            "num_attention_heads": 16,
        },
        "qwen2",
        anyres.ONEVISION,
    ),
}
