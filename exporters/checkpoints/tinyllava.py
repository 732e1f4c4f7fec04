"""The dialect of TinyLLaVA-Factory (arXiv 2405.11788): `connector_type` in config.json, beside the configs of language
model and vision encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge.errors import CheckpointError
from edge.spec import VLMSpec
from exporters.checkpoints import decoder_spec, shortened, vision_spec
from exporters.models import decoders, projectors, vision
from exporters.models.projectors import ProjectorConfig
from exporters.models.vision import VisionConfig
from exporters.sources import chat_template, mm_keys, preprocessor, tokenizer, tower
from exporters.sources.checkpoint import Checkpoint, check, config_of, license_of, weights_of
from exporters.sources.checkpoint_folder import (
    decoder_component,
    decoder_config,
    defaults_named,
    projector_component,
    prompt_spec,
    refuse_options,
    small_files,
)
from exporters.sources.lora import Adapter
from exporters.sources.sentencepiece import SentencePiece
from exporters.sources.tower_config import require_layer

MODEL_TYPES = ("tinyllava",)
MARKS = ("connector_type",)
DECODER, HEAD, PROJECTOR = "language_model.model.", "language_model.lm_head.", "connector._connector."
DEFAULTS: Mapping[str, Any] = {  # the code's TinyLlavaConfig
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "patch",
    "image_aspect_ratio": "square",
    "vision_model_name_or_path2": "",
}
# A key that begins so belongs to the model, and is read or refused.
_OWN = re.compile(r"(image|vision|video|connector|mm|use_s2|s2)_?.*")
_READ = (*DEFAULTS, *MARKS, "vision_config", "vision_hidden_size", "vision_model_name_or_path", "image_token_index")
_TEMPLATE = "the chat template is the language model's; the prompt is the one that TinyLLaVA's own programs ask with"


def recognise(config: Mapping[str, Any]) -> bool:
    return any(mark in config for mark in MARKS)


def read(
    folder: Path,
    *,
    vision_tower: Path | None,
    mmproj: Path | None,
    context: int | None,
    adapter: Adapter | None,
) -> Checkpoint:
    """Raises CheckpointError on what is missing or not understood, UsageError on a context that cannot be."""
    refuse_options(mmproj, vision_tower)
    config = config_of(folder, adapter)
    told = {**DEFAULTS, **config}
    _refuse(told)
    text, seen = (_section(config, name) for name in ("text_config", "vision_config"))
    family = decoders.find(str(text.get("model_type")))
    decoder = decoder_config(family, text, "text_config")
    eyes, encoder = _encoder(told, seen)
    weights = weights_of(folder, adapter)
    if (prefix := tower.prefix_of(eyes, weights)) is None:
        raise CheckpointError("the checkpoint holds no vision encoder", hint="download the checkpoint again")
    sizes = {name: size for name, size in eyes.DEFAULTS.items() if type(size) is int and name not in seen}
    with defaults_named({"text_config": family.left_out(text), "vision_config": sizes}):
        module, depth = projectors.find(str(told["connector_type"]))
        skipped = encoder.grid**2 + encoder.cls - encoder.tokens
        shape = ProjectorConfig(encoder.hidden, decoder.hidden, encoder.grid, encoder.cls, depth, skipped)
        own = {name: told[name] for name in projectors.settings(module) if name in told}
        projector = projectors.configure(module, shape, own)
        image_tokens: int = module.tokens(projector)
        decoder = replace(decoder, context=shortened(context, decoder.context, image_tokens))
        components = {
            "vision": tower.component(eyes, encoder, prefix),
            "projector": projector_component(module, projector, PROJECTOR.__add__),
            "decoder": decoder_component(family, decoder, DECODER, HEAD),
        }
        ignored = f"{re.escape(prefix)}(?:{eyes.ignored(encoder)})" + rf"|{re.escape(HEAD)}weight" * decoder.tied
        check(components.values(), weights, re.compile(rf".*\.rotary_emb\.inv_freq|{ignored}"))
    templates = chat_template.find(folder)
    return Checkpoint(
        name=folder.resolve().name,
        license=license_of(folder, config),
        spec=VLMSpec(
            image=preprocessor.find(
                (folder,), encoder.image_size, mm_keys.FITS[told["image_aspect_ratio"]], eyes.PROCESSOR
            ),
            prompt=prompt_spec(folder, {"eos_token_id": text.get("eos_token_id")}, image_tokens, decoder.vocab),
            decoder=decoder_spec(decoder),
            vision=vision_spec(encoder),
        ),
        components=components,
        weights=weights,
        folder=folder,
        sentencepiece=SentencePiece.open(folder),
        small=small_files(folder),
        # The code asks every model with Vicuna's prompt, up to how an answer ends.
        templates={},
        origins={},
        published=True,
        special=tokenizer.special_ids(folder),
        notes=(*tokenizer.notes(folder, decoder.vocab), *(_TEMPLATE,) * bool(templates)),
    )


def _refuse(told: Mapping[str, Any]) -> None:
    """What would make another model if it were passed over."""
    if told.get("quantization_config"):
        raise CheckpointError("the checkpoint is quantised already", hint="give the one in float16 or bfloat16")
    if second := told["vision_model_name_or_path2"]:
        raise CheckpointError(
            f"vision_model_name_or_path2 is {second!r}: features of two vision encoders are not mixed",
            hint="a checkpoint of one vision encoder",
        )
    if not re.fullmatch(r"linear|mlp\d+x_gelu|resampler|qformer", kind := str(told["connector_type"])):
        raise CheckpointError(
            f"connector_type {kind!r} is not supported", hint="one of: linear, mlpNx_gelu, resampler, qformer"
        )
    if (fit := told["image_aspect_ratio"]) not in tuple(mm_keys.FITS):
        raise CheckpointError(f"image_aspect_ratio {fit!r} is not supported", hint="one of: pad, square, or none")
    for key, value in told.items():
        if _OWN.fullmatch(key) and key not in _READ and value:
            raise CheckpointError(
                f"config.json has {key} {value!r}, which TinyLLaVA-Factory does not have",
                hint="take it out if the checkpoint was trained without it",
            )


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"config.json has {name} {found!r}", hint="it must be a JSON object")
    return found


def _encoder(told: Mapping[str, Any], seen: Mapping[str, Any]) -> tuple[Any, VisionConfig]:
    """The vision encoder, up to `vision_feature_layer`. The strategy "patch" leaves out the first embedding: CLIP's
    class token, and the first patch of an encoder that has none."""
    module = vision.find(seen.get("model_type"))
    strategy, layer = told["vision_feature_select_strategy"], told["vision_feature_layer"]
    if strategy not in ("patch", "cls_patch"):
        raise CheckpointError(f"vision_feature_select_strategy is {strategy!r}", hint="one of: patch, cls_patch")
    if type(layer) is not int:
        raise CheckpointError(f"vision_feature_layer is {layer!r}", hint="the number of one layer")
    feature = strategy if module.CLASS_TOKEN else {"patch": "patch_but_first", "cls_patch": "patch"}[strategy]
    config: VisionConfig = module.from_config(seen, select_layer=layer, select_feature=feature)
    require_layer(config, "vision_feature_layer", layer)
    if (width := told.get("vision_hidden_size", config.hidden)) != config.hidden:
        raise CheckpointError(
            f"vision_hidden_size is {width}, the vision encoder is {config.hidden} wide",
            hint="does vision_config belong to the checkpoint?",
        )
    return module, config
