"""The dialect of transformers' Idefics3ForConditionalGeneration and SmolVLMForConditionalGeneration: Idefics3, SmolVLM,
SmolVLM2 and their kin."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import tokenizers
import torch

from edge.errors import CheckpointError
from edge.spec import ImageSpec, VLMSpec
from edge.spec.division import ViewsSpec
from edge.spec.pieces import Text, ViewPieces
from exporters.checkpoints import decoder_spec, shortened, vision_spec
from exporters.models import decoders, projectors, vision
from exporters.models.projectors import ProjectorConfig
from exporters.models.vision import VisionConfig
from exporters.sources import chat_template, preprocessor, split_preprocessor, tokenizer, tower
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

MODEL_TYPES = ("idefics3", "smolvlm")
MARKS = ("text_config", "vision_config")
DECODER, HEAD = "model.text_model.", "lm_head."
VISION, PROJECTOR = "model.vision_model.", "model.connector.modality_projection."
DEFAULTS: Mapping[str, Any] = {  # transformers' Idefics3Config
    "image_token_id": 128257,
    "scale_factor": 2,
    "tie_word_embeddings": False,
}
SEEN: Mapping[str, Any] = {  # and its Idefics3VisionConfig
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
# What vision_config may call itself: whatever it is, transformers reads it as its Idefics3VisionConfig.
_KINDS = ("idefics3", "idefics3_vision", "smolvlm", "smolvlm_vision", "siglip_vision_model")
_READ = (*DEFAULTS, *MARKS)
# A key that begins so belongs to the model, not to training or to transformers, and is read or refused.
_OWN = re.compile(r"(image|vision|video|scale|pixel|connector|mm|perceiver|resampler|use_resampler|qk|rope_inter).*")
# What the text_config of published checkpoints holds besides, of the code that they were trained by.
_TRAINED = ("use_resampler", "qk_layer_norms", "rope_interleaved")
IMAGE, AROUND, OVERVIEW = "<image>", "<fake_token_around_image>", "<global-img>"
ONE_VIEW = f"{AROUND}{OVERVIEW}{IMAGE}{AROUND}"  # what the processor writes for an image that it does not split
_SPLITS = "its processor splits images that it does not resize, and a bundle sees each as one view"


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
    text, seen = (section(config, name) for name in MARKS)
    _refuse(config, told, text)
    tied = any(flag(told_in, "tie_word_embeddings") for told_in in (told, text))
    family = decoders.find(str(text.get("model_type", "llama")))
    decoder = decoder_config(family, {**text, "tie_word_embeddings": tied}, "text_config")
    eyes, encoder = _encoder(seen)
    weights = weights_of(folder, adapter)
    sizes = {name: size for name, size in SEEN.items() if type(size) is int and name not in seen}
    with defaults_named({"text_config": family.left_out(text), "vision_config": sizes}):
        module, projector = _projector(told, encoder, decoder.hidden)
        image_tokens: int = module.tokens(projector)
        decoder = replace(decoder, context=shortened(context, decoder.context, image_tokens))
        components = {
            "vision": tower.component(eyes, encoder, VISION),
            "projector": projector_component(module, projector, PROJECTOR.__add__),
            "decoder": decoder_component(family, decoder, DECODER, HEAD),
        }
        ignored = f"{re.escape(VISION)}(?:{eyes.ignored(encoder)})" + rf"|{re.escape(HEAD)}weight" * tied
        check(components.values(), weights, re.compile(rf".*\.rotary_emb\.inv_freq|{ignored}"))
    image, splits = split_preprocessor.find(folder, encoder.image_size)
    _require_rows(folder, image_tokens)
    eos = {"eos_token_id": next((c["eos_token_id"] for c in (config, text) if "eos_token_id" in c), None)}
    checkpoint = Checkpoint(
        name=folder.resolve().name,
        license=license_of(folder, config),
        spec=VLMSpec(
            image=image,
            prompt=prompt_spec(folder, eos, image_tokens, decoder.vocab),
            decoder=decoder_spec(decoder),
            vision=vision_spec(encoder),
        ),
        components=components,
        weights=weights,
        folder=folder,
        sentencepiece=SentencePiece.open(folder),
        small=small_files(folder),
        templates=_templates(folder),
        origins={},
        published=False,
        special=tokenizer.special_ids(folder),
        notes=(*tokenizer.notes(folder, decoder.vocab), *(_SPLITS,) * splits),
        image_text=ONE_VIEW,
    )
    special = _special(checkpoint, told["image_token_id"])
    prompt = replace(checkpoint.spec.prompt, image=pieces(ONE_VIEW, special, IMAGE), views=_views(image, special))
    return replace(checkpoint, spec=replace(checkpoint.spec, prompt=prompt))


def _refuse(config: Mapping[str, Any], told: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """What would make another model if it were passed over."""
    if config.get("quantization_config"):
        raise CheckpointError("the checkpoint is quantised already", hint="give the one in float16 or bfloat16")
    for key, value in config.items():
        if _OWN.fullmatch(key) and key not in _READ and value:
            raise CheckpointError(
                f"config.json has {key} {value!r}, which Idefics3 and SmolVLM do not have",
                hint="take it out if the checkpoint was trained without it",
            )
    for key in _TRAINED:
        if text.get(key):
            raise CheckpointError(
                f"text_config has {key} {text[key]!r}, which transformers does not compute",
                hint="false or null, as in the published checkpoints",
            )
    factor = text.get("pixel_shuffle_factor", told["scale_factor"])
    if factor != told["scale_factor"]:
        raise CheckpointError(
            f"scale_factor is {told['scale_factor']!r}, and text_config has pixel_shuffle_factor {factor!r}",
            hint="keep the one that the checkpoint was trained with",
        )


def _encoder(seen: Mapping[str, Any]) -> tuple[ModuleType, VisionConfig]:
    """SigLIP's, with the norm behind its last layer."""
    if (kind := seen.get("model_type", _KINDS[0])) not in _KINDS:
        raise CheckpointError(f"vision_config is of the model_type {kind!r}", hint="one of: " + ", ".join(_KINDS))
    module = vision.find("siglip_vision_model")
    config: VisionConfig = module.from_config({**SEEN, **seen, "model_type": "siglip_vision_model"}, select_layer=None)
    if not _in_place(config.grid):
        raise CheckpointError(
            f"an image has {config.grid} patches a side, of which transformers gives some the position of others",
            hint="image_size and patch_size as published: 32, 27 or 26 patches a side",
        )
    return module, config


def _in_place(grid: int) -> bool:
    """Whether each patch of a whole image gets the position that it has. transformers finds it by fractions of the
    image in float32, which by rounding fall into the neighbour's place for some numbers of patches."""
    bounds = torch.arange(1 / grid, 1.0, 1 / grid)
    places = (torch.arange(grid, dtype=torch.float32) * (1.0 / torch.tensor(grid))).clamp(max=1.0 - 1e-6)
    return torch.equal(torch.bucketize(places, bounds, right=True), torch.arange(grid))


def _projector(told: Mapping[str, Any], seen: VisionConfig, hidden: int) -> tuple[ModuleType, ProjectorConfig]:
    module, _ = projectors.find("pixel_shuffle")
    shape = ProjectorConfig(inputs=seen.hidden, hidden=hidden, grid=seen.grid, cls=seen.cls)
    return module, projectors.configure(module, shape, told)


def _require_rows(folder: Path, image_tokens: int) -> None:
    """What the processor puts into a prompt for a view is as long as what the projector makes of it."""
    length = read_optional_json(folder / preprocessor.FILES[1]).get("image_seq_len", image_tokens)
    if length != image_tokens:
        raise CheckpointError(
            f"{preprocessor.FILES[1]} has image_seq_len {length!r}, and an image gives {image_tokens} embeddings",
            hint="do vision_config and scale_factor belong to the checkpoint?",
        )


def _templates(folder: Path) -> dict[str, str]:
    """The processor's own, where there is one: the tokenizer's is then its language model's."""
    found = chat_template.find(folder)
    own = {where: text for where, text in found.items() if where in chat_template.PROCESSOR or where.endswith(".jinja")}
    return own or found


def _views(image: ImageSpec, special: Special) -> ViewPieces | None:
    """What the processor writes for tiles, whose places may be special tokens or not."""
    if not isinstance(image.views, ViewsSpec):
        return None
    places = range(1, image.views.grid + 1)
    tiles = tuple(
        tuple(pieces(f"{AROUND}<row_{row}_col_{column}>{IMAGE}", special, IMAGE) for column in places) for row in places
    )
    return ViewPieces(tiles, (Text("\n"),), pieces(f"\n{ONE_VIEW}", special, IMAGE))


def _special(checkpoint: Checkpoint, index: object) -> Special:
    """The tokenizer's special tokens. Raises CheckpointError where it lacks one that stands around an image, or numbers
    it otherwise than the model does."""
    texts = tokenizers.Tokenizer.from_str(checkpoint.tokenizer_json())
    special = {token.content: (i, token) for i, token in texts.get_added_tokens_decoder().items() if token.special}
    for name in (IMAGE, AROUND):
        if name not in special:
            raise CheckpointError(
                f"the tokenizer has no special token {name!r}",
                hint="are tokenizer.json, added_tokens.json and special_tokens_map.json of this checkpoint?",
            )
    if type(index) is not int or special[IMAGE][0] != index:
        raise CheckpointError(
            f"image_token_id is {index!r}, and the tokenizer's {IMAGE!r} is {special[IMAGE][0]}",
            hint="does the tokenizer belong to the checkpoint?",
        )
    return special
