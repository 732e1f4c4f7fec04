"""The dialect of transformers' LlavaForConditionalGeneration, LlavaNext… and LlavaOnevision…: LLaVA-1.5, LLaVA-NeXT and
LLaVA-OneVision of llava-hf and their kin (`vision_config` and `text_config` in config.json), as transformers 4 and 5
save them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import tokenizers

from edge.errors import CheckpointError
from edge.spec import ImageSpec, VLMSpec
from exporters.checkpoints import decoder_spec, shortened, vision_spec
from exporters.models import decoders, projectors, vision
from exporters.models.newline import with_newline
from exporters.models.projectors import ProjectorConfig
from exporters.models.vision import VisionConfig
from exporters.sources import anyres, chat_template, preprocessor, tokenizer, tower
from exporters.sources.checkpoint import Checkpoint, check, config_of, license_of, read_optional_json, weights_of
from exporters.sources.checkpoint_folder import (
    decoder_component,
    decoder_config,
    defaults_named,
    flag,
    projector_component,
    prompt_spec,
    refuse_options,
    section,
    small_files,
)
from exporters.sources.llava_kinds import DEFAULTS, KINDS, VISION, Kind
from exporters.sources.lora import Adapter
from exporters.sources.prompts import CONVERSATIONS
from exporters.sources.sentencepiece import SentencePiece
from exporters.sources.tower_config import require_layer
from exporters.sources.weights import Weights

MODEL_TYPES = ("llava", "llava_next", "llava_onevision")
MARKS = ("text_config", "vision_config")
NEWLINE_TOLD = "use_image_newline_parameter"
# A key that begins so belongs to the model, not to training or to transformers, and is read or refused.
_OWN = re.compile(r"(image|vision|video|projector|multimodal|mm|downsample|spatial|use_image)_.*|s2")
_LINEARS = {"0": "linear_1", "2": "linear_2"}  # our projector's layers -> transformers'


class Spelling(NamedTuple):
    """How a version of transformers names what the components are made of. The vision encoder's own marks tell where
    it is: `vision_tower.`, with `model.` before it and `vision_model.` behind it or not."""

    decoder: str
    head: str
    projector: str
    newline: str


SPELLINGS = (  # 4, and 5 on disk; 5
    Spelling("language_model.model.", "language_model.lm_head.", "multi_modal_projector.", "image_newline"),
    Spelling("model.language_model.", "lm_head.", "model.multi_modal_projector.", "model.image_newline"),
)


def recognise(config: Mapping[str, Any]) -> bool:
    return "mm_vision_tower" not in config and any(mark in config for mark in MARKS)


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
    kind = KINDS[config["model_type"]]
    told = {**kind.defaults, **{name: value for name, value in config.items() if name != anyres.POINTS or value}}
    _refuse(config, kind)
    text, seen = section(config, "text_config", {}), section(config, "vision_config", kind.vision)
    tied = any(flag(told_in, "tie_word_embeddings") for told_in in (told, text))
    family = decoders.find(str(text.get("model_type", kind.text)))
    decoder = decoder_config(family, {**text, "tie_word_embeddings": tied}, "text_config")
    eyes, encoder = _encoder(told, seen)
    weights = weights_of(folder, adapter)
    spelling, prefix = _spelling(weights), tower.prefix_of(eyes, weights)
    if prefix is None:
        raise CheckpointError("the checkpoint holds no vision encoder", hint="download the checkpoint again")
    sizes = {name: size for name, size in eyes.DEFAULTS.items() if type(size) is int and name not in seen}
    with defaults_named({"text_config": family.left_out(text), "vision_config": sizes}):
        module, projector = _projector(told, encoder, decoder.hidden)
        rows: int = module.tokens(projector)
        image_tokens = rows + bool(kind.processor)
        decoder = replace(decoder, context=shortened(context, decoder.context, image_tokens))
        project = projector_component(module, projector, partial(_projector_key, spelling))
        components = {
            "vision": tower.component(eyes, encoder, prefix),
            "projector": with_newline(project, decoder.hidden, spelling.newline) if kind.processor else project,
            "decoder": decoder_component(family, decoder, spelling.decoder, spelling.head),
        }
        ignored = f"{re.escape(prefix)}(?:{eyes.ignored(encoder)})" + rf"|{re.escape(spelling.head)}weight" * tied
        check(components.values(), weights, re.compile(rf".*\.rotary_emb\.inv_freq|{ignored}"))
    _require_rows(folder, told, encoder, rows)
    eos = {"eos_token_id": next((c["eos_token_id"] for c in (config, text) if "eos_token_id" in c), None)}
    checkpoint = Checkpoint(
        name=folder.resolve().name,
        license=license_of(folder, config),
        spec=VLMSpec(
            image=_image(folder, told, kind, eyes, encoder, rows),
            prompt=prompt_spec(folder, eos, image_tokens, decoder.vocab),
            decoder=decoder_spec(decoder),
            vision=vision_spec(encoder),
        ),
        components=components,
        weights=weights,
        folder=folder,
        sentencepiece=SentencePiece.open(folder),
        small=small_files(folder),
        templates=chat_template.find(folder),
        origins=_origins(config, text),
        published=False,
        notes=tokenizer.notes(folder, decoder.vocab),
    )
    _require_image_token(checkpoint, told)
    return checkpoint


def _image(
    folder: Path,
    told: Mapping[str, Any],
    kind: Kind,
    eyes: ModuleType,
    seen: VisionConfig,
    rows: int,
) -> ImageSpec:
    if kind.processor is None:
        return preprocessor.find((folder,), seen.image_size, "crop", eyes.PROCESSOR)
    ratio, points = "vision_aspect_ratio", told[anyres.POINTS]
    most = anyres.most_tiles(ratio, told[ratio]) if ratio in kind.defaults else None
    if most is None and ratio in kind.defaults:
        raise CheckpointError(f"{ratio} is {told[ratio]!r}: transformers computes no such", hint="anyres_max_9")
    views = anyres.spec(points, seen.grid, rows, seen.image_size, most, wide_first=False)
    return anyres.find(folder, seen.image_size, kind.processor, views, points)


def _refuse(config: Mapping[str, Any], kind: Kind) -> None:
    """What would make another model if it were passed over."""
    if config.get("quantization_config"):
        raise CheckpointError("the checkpoint is quantised already", hint="give the one in float16 or bfloat16")
    for key, value in config.items():
        known = key in kind.defaults or key in MARKS or key in ("image_token_id", "video_token_id")
        odd = value is not True if key == NEWLINE_TOLD and kind.processor else value and not known
        if _OWN.fullmatch(key) and odd:
            hint = "take it out if the checkpoint was trained without it"
            if any(name.startswith("mm_") for name in config):
                hint = "mm_* keys are of LLaVA's own layout: is mm_vision_tower missing?"
            raise CheckpointError(
                f"config.json has {key} {value!r}, which LLaVA in transformers does not have", hint=hint
            )


def _encoder(told: Mapping[str, Any], seen: Mapping[str, Any]) -> tuple[ModuleType, VisionConfig]:
    """The vision encoder, up to `vision_feature_layer`, with its class token's embedding or without."""
    module = vision.find(seen.get("model_type", VISION["model_type"]))
    strategy, layer = told["vision_feature_select_strategy"], told["vision_feature_layer"]
    if strategy not in ("default", "full"):
        raise CheckpointError(f"vision_feature_select_strategy is {strategy!r}", hint="one of: default, full")
    if isinstance(layer, list) and len(layer) == 1:
        layer = layer[0]
    if type(layer) is not int:
        several = "features of several layers are not joined" if isinstance(layer, list) else "it is no number"
        raise CheckpointError(f"vision_feature_layer is {layer!r}: {several}", hint="the number of one layer")
    if strategy == "default" and not module.CLASS_TOKEN:
        raise CheckpointError(
            f"vision_feature_select_strategy is 'default': it leaves out a class token, and {module.KIND} has none",
            hint="'full' takes every patch",
        )
    feature = "cls_patch" if strategy == "full" and module.CLASS_TOKEN else "patch"
    config: VisionConfig = module.from_config(seen, select_layer=layer, select_feature=feature)
    require_layer(config, "vision_feature_layer", layer)
    return module, config


def _spelling(weights: Weights) -> Spelling:
    for spelling in SPELLINGS:
        if any(name.startswith(spelling.projector) for name in weights):
            return spelling
    raise CheckpointError(
        "config.json has the layout of transformers' LLaVA, and no weight is named multi_modal_projector.*",
        hint="is mm_vision_tower missing, which LLaVA's own layout has? Else download the checkpoint again",
    )


def _projector(told: Mapping[str, Any], seen: VisionConfig, hidden: int) -> tuple[ModuleType, ProjectorConfig]:
    module, depth = projectors.find("mlp2x_gelu")
    shape = ProjectorConfig(inputs=seen.hidden, hidden=hidden, grid=seen.grid, cls=seen.cls, depth=depth)
    return module, projectors.configure(module, shape, told)


def _projector_key(spelling: Spelling, name: str) -> str:
    layer, _, kind = name.partition(".")
    return f"{spelling.projector}{_LINEARS[layer]}.{kind}"


def _require_rows(folder: Path, told: Mapping[str, Any], seen: VisionConfig, image_tokens: int) -> None:
    """What the processor puts into a prompt for an image is as long as what the projector makes of it."""
    length = told.get("image_seq_length")
    if length not in (None, DEFAULTS["image_seq_length"], image_tokens):  # the default is written unasked
        raise CheckpointError(
            f"image_seq_length is {length!r}, and an image gives {image_tokens} embeddings",
            hint="does vision_config belong to the checkpoint?",
        )
    processor = read_optional_json(folder / preprocessor.FILES[1])
    strategy = told["vision_feature_select_strategy"]
    extra = image_tokens - seen.grid**2 + (strategy == "default")
    expected = {
        "patch_size": seen.patch_size,
        "vision_feature_select_strategy": strategy,
        "num_additional_image_tokens": extra,
        "num_image_tokens": image_tokens,
        "vision_aspect_ratio": told.get("vision_aspect_ratio"),
    }
    for name, value in expected.items():
        if (found := processor.get(name)) is not None and found != value:
            raise CheckpointError(
                f"{preprocessor.FILES[1]} has {name} {found!r}, and config.json makes it {value!r}",
                hint="keep the one that the checkpoint was trained with",
            )


def _require_image_token(checkpoint: Checkpoint, told: Mapping[str, Any]) -> None:
    """The tokenizer knows the image's token by the id that the model looks for, if it knows it."""
    index = told.get("image_token_id", told["image_token_index"])  # two names of one setting
    if type(index) is not int:
        raise CheckpointError(f"image_token_index is {index!r}", hint="the id of the token that stands for an image")
    processor = read_optional_json(checkpoint.folder / preprocessor.FILES[1])
    token = str(processor.get("image_token") or "<image>")
    found = tokenizers.Tokenizer.from_str(checkpoint.tokenizer_json()).token_to_id(token)
    if found is not None and found != index:
        raise CheckpointError(
            f"image_token_index is {index}, and the tokenizer's {token!r} is {found}",
            hint="does the tokenizer belong to the checkpoint?",
        )


def _origins(config: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """What may name the conversation that the decoder learned."""
    found = {key: config[key] for key in (*CONVERSATIONS, "_name_or_path") if config.get(key)}
    if text.get("_name_or_path"):
        found["text_config's _name_or_path"] = text["_name_or_path"]
    return found
