"""The dialect of transformers' InternVLForConditionalGeneration: InternVL2.5, 3 and 3.5 as `-hf` checkpoints have
them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import tokenizers

from edge.errors import CheckpointError
from edge.spec import VLMSpec
from exporters.checkpoints import decoder_spec, shortened, vision_spec
from exporters.models import decoders, projectors, vision
from exporters.models.decoders import DecoderConfig, Family
from exporters.models.projectors import ProjectorConfig
from exporters.models.vision import VisionConfig
from exporters.sources import chat_template, preprocessor, ratio_preprocessor, tokenizer, tower
from exporters.sources.added_tokens import CONFIG
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
from exporters.sources.lora import Adapter
from exporters.sources.sentencepiece import SentencePiece
from exporters.sources.template_pieces import Special, pieces
from exporters.sources.tower_config import require_layer
from exporters.sources.weights import Weights

MODEL_TYPES = ("internvl",)
MARKS = ("text_config", "vision_config")
DEFAULTS: Mapping[str, Any] = {  # transformers' InternVLConfig
    "image_token_id": 151667,
    "image_seq_length": 256,
    "downsample_ratio": 0.5,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
    "tie_word_embeddings": True,
}
TOKENS = {  # as published; tokenizer_config.json may name others
    "start_image_token": "<img>",
    "context_image_token": "<IMG_CONTEXT>",
    "end_image_token": "</img>",
}
# A key that begins so belongs to the model, not to training or to transformers, and is read or refused.
_OWN = re.compile(r"(image|vision|video|downsample|projector|multimodal|mm|pixel|ps_version|dynamic|use_thumbnail).*")
_READ = (*DEFAULTS, *MARKS, "video_token_id")


class Spelling(NamedTuple):
    """How a version of transformers names what the components are made of. The vision encoder's own marks tell where
    it is."""

    decoder: str
    head: str
    projector: str


SPELLINGS = (  # on disk; in memory
    Spelling("language_model.model.", "language_model.lm_head.", "multi_modal_projector."),
    Spelling("model.language_model.", "lm_head.", "model.multi_modal_projector."),
)


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
    _refuse(config)
    text, seen = section(config, "text_config", {}), section(config, "vision_config", {})
    weights = weights_of(folder, adapter)
    spelling = _spelling(weights)
    family, decoder = _decoder(told, text, f"{spelling.head}weight" in weights)
    eyes, encoder = _encoder(told, seen)
    prefix = tower.prefix_of(eyes, weights)
    if prefix is None:
        raise CheckpointError("the checkpoint holds no vision encoder", hint="download the checkpoint again")
    sizes = {name: size for name, size in eyes.DEFAULTS.items() if type(size) is int and name not in seen}
    with defaults_named({"text_config": family.left_out(text), "vision_config": sizes}):
        module, projector = _projector(told, encoder, decoder.hidden)
        image_tokens: int = module.tokens(projector)
        decoder = replace(decoder, context=shortened(context, decoder.context, image_tokens))
        components = {
            "vision": tower.component(eyes, encoder, prefix),
            "projector": projector_component(module, projector, spelling.projector.__add__),
            "decoder": decoder_component(family, decoder, spelling.decoder, spelling.head),
        }
        ignored = rf".*\.rotary_emb\.inv_freq|{re.escape(prefix)}(?:{eyes.ignored(encoder)})"
        check(components.values(), weights, re.compile(ignored))
    _require_rows(folder, told, image_tokens)
    eos = {"eos_token_id": next((c["eos_token_id"] for c in (config, text) if "eos_token_id" in c), None)}
    around = _image_tokens(folder)
    checkpoint = Checkpoint(
        name=folder.resolve().name,
        license=license_of(folder, config),
        spec=VLMSpec(
            image=ratio_preprocessor.find(folder, encoder.image_size),
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
        origins={},
        published=False,
        special=tokenizer.special_ids(folder),
        notes=tokenizer.notes(folder, decoder.vocab),
        image_mark=around[1],
        image_text="".join(around),
    )
    special = _special(checkpoint, around, told["image_token_id"])
    image = pieces(checkpoint.image_text, special, checkpoint.image_mark)
    prompt = replace(checkpoint.spec.prompt, image=image)
    return replace(checkpoint, spec=replace(checkpoint.spec, prompt=prompt))


def _refuse(config: Mapping[str, Any]) -> None:
    """What would make another model if it were passed over."""
    if config.get("quantization_config"):
        raise CheckpointError("the checkpoint is quantised already", hint="give the one in float16 or bfloat16")
    for key, value in config.items():
        if _OWN.fullmatch(key) and key not in _READ and value:
            raise CheckpointError(
                f"config.json has {key} {value!r}, which InternVL in transformers does not have",
                hint="take it out if the checkpoint was trained without it",
            )


def _spelling(weights: Weights) -> Spelling:
    for spelling in SPELLINGS:
        if any(name.startswith(spelling.projector) for name in weights):
            return spelling
    raise CheckpointError(
        "config.json has the layout of transformers' InternVL, and no weight is named multi_modal_projector.*",
        hint="download the checkpoint again: the one whose name ends with -hf",
    )


def _decoder(told: Mapping[str, Any], text: Mapping[str, Any], headed: bool) -> tuple[Family, DecoderConfig]:
    """A head that the checkpoint holds is computed with, whatever is tied by default."""
    tied = any(flag(section, "tie_word_embeddings") for section in (told, text)) and not headed
    family = decoders.find(str(text.get("model_type", "qwen2")))
    return family, decoder_config(family, {**text, "tie_word_embeddings": tied}, "text_config")


def _encoder(told: Mapping[str, Any], seen: Mapping[str, Any]) -> tuple[ModuleType, VisionConfig]:
    """InternViT, up to `vision_feature_layer`, without its class token's embedding."""
    module = vision.find(seen.get("model_type", "internvl_vision"))
    strategy, layer = told["vision_feature_select_strategy"], told["vision_feature_layer"]
    if strategy != "default":
        raise CheckpointError(
            f"vision_feature_select_strategy is {strategy!r}: patches and a class token are no square",
            hint="default, as in the published checkpoints",
        )
    if isinstance(layer, list) and len(layer) == 1:
        layer = layer[0]
    if type(layer) is not int:
        raise CheckpointError(f"vision_feature_layer is {layer!r}", hint="the number of one layer")
    config: VisionConfig = module.from_config(seen, select_layer=layer)
    require_layer(config, "vision_feature_layer", layer)
    return module, config


def _projector(told: Mapping[str, Any], seen: VisionConfig, hidden: int) -> tuple[ModuleType, ProjectorConfig]:
    module, _ = projectors.find("internvl")
    shape = ProjectorConfig(inputs=seen.hidden, hidden=hidden, grid=seen.grid, cls=seen.cls)
    return module, projectors.configure(module, shape, told)


def _require_rows(folder: Path, told: Mapping[str, Any], image_tokens: int) -> None:
    """What the processor puts into a prompt for a view is as long as what the projector makes of it."""
    usual = DEFAULTS["image_seq_length"]  # is written unasked
    processor = read_optional_json(folder / preprocessor.FILES[1])
    lengths = {"config.json": told["image_seq_length"], preprocessor.FILES[1]: processor.get("image_seq_length")}
    for name, length in lengths.items():
        if length not in (None, usual, image_tokens):
            raise CheckpointError(
                f"{name} has image_seq_length {length!r}, and a view gives {image_tokens} embeddings",
                hint="do vision_config and downsample_ratio belong to the checkpoint?",
            )


def _image_tokens(folder: Path) -> tuple[str, ...]:
    """What stands before an image's embeddings, for each of them, and behind them."""
    told = read_optional_json(folder / CONFIG)
    named = {key: told.get(key, usual) for key, usual in TOKENS.items()}
    found = {key: token.get("content") if isinstance(token, dict) else token for key, token in named.items()}
    for key, token in found.items():
        if not isinstance(token, str) or not token:
            raise CheckpointError(f"{CONFIG} has {key} {named[key]!r}", hint=f"{TOKENS[key]!r}, as published")
    return tuple(map(str, found.values()))


def _special(checkpoint: Checkpoint, around: tuple[str, ...], index: object) -> Special:
    """The tokenizer's special tokens. Raises CheckpointError where it lacks one of an image, or numbers that of its
    embeddings otherwise than the model does."""
    texts = tokenizers.Tokenizer.from_str(checkpoint.tokenizer_json())
    special = {token.content: (i, token) for i, token in texts.get_added_tokens_decoder().items() if token.special}
    for name in around:
        if name not in special:
            raise CheckpointError(
                f"the tokenizer has no special token {name!r}",
                hint="are tokenizer.json, added_tokens.json and tokenizer_config.json of this checkpoint?",
            )
    if type(index) is not int or special[around[1]][0] != index:
        raise CheckpointError(
            f"image_token_id is {index!r}, and the tokenizer's {around[1]!r} is {special[around[1]][0]}",
            hint="does the tokenizer belong to the checkpoint?",
        )
    return special
