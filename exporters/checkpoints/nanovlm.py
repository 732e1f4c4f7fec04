"""The dialect of nanoVLM (github.com/huggingface/nanoVLM), whose config.json has sizes of its own names and no
model_type: SigLIP, pixel shuffle and SmolLM2, each image as one view."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import tokenizers

from edge.errors import CheckpointError
from edge.spec import VLMSpec
from exporters.checkpoints import decoder_spec, image_spec, shortened, vision_spec
from exporters.models import decoders, projectors, vision
from exporters.models.component import Component
from exporters.models.projectors import ProjectorConfig
from exporters.models.source import Source, Split, Squeeze
from exporters.models.vision import VisionConfig
from exporters.sources import tokenizer, tower
from exporters.sources.added_tokens import JSON
from exporters.sources.checkpoint import Checkpoint, check, config_of, license_of, weights_of
from exporters.sources.checkpoint_folder import (
    decoder_component,
    decoder_config,
    projector_component,
    prompt_spec,
    refuse_options,
    small_files,
)
from exporters.sources.lora import Adapter
from exporters.sources.template_pieces import pieces
from exporters.sources.template_rendered import MARK
from exporters.sources.weights import Weights

MODEL_TYPES = (None,)
MARKS = ("vit_hidden_dim", "lm_hidden_dim", "mp_pixel_shuffle_factor")
TEXT = {  # its names -> those of a Llama in transformers
    "lm_vocab_size": "vocab_size",
    "lm_hidden_dim": "hidden_size",
    "lm_inter_dim": "intermediate_size",
    "lm_n_blocks": "num_hidden_layers",
    "lm_n_heads": "num_attention_heads",
    "lm_n_kv_heads": "num_key_value_heads",
    "lm_max_position_embeddings": "max_position_embeddings",
    "lm_rms_eps": "rms_norm_eps",
    "lm_re_base": "rope_theta",
    "lm_tie_weights": "tie_word_embeddings",
}
SEEN = {  # and of SigLIP
    "vit_hidden_dim": "hidden_size",
    "vit_inter_dim": "intermediate_size",
    "vit_patch_size": "patch_size",
    "vit_img_size": "image_size",
    "vit_n_heads": "num_attention_heads",
    "vit_n_blocks": "num_hidden_layers",
    "vit_ln_eps": "layer_norm_eps",
}
# What another value of would be another model.
FIXED = {"vit_cls_flag": False, "lm_attn_scaling": 1.0, "lm_use_tokens": False}
_OWN = re.compile(r"(vit|lm|mp|vlm)_.*")
_IRRELEVANT = re.compile(r".*_(dropout|model_type|backbone_weights|checkpoint_path)|lm_max_length|lm_base_vocab_size")
_READ = ("mp_pixel_shuffle_factor", "mp_image_token_length", "vlm_extra_tokens", "lm_tokenizer", "lm_chat_template")
# Each of ours -> theirs. What is left out is called the same.
_DECODER = (
    ("embed_tokens", "token_embedding"),
    ("layers.", "blocks."),
    ("self_attn.o_proj", "attn.out_proj"),
    ("self_attn", "attn"),
    ("input_layernorm", "norm1"),
    ("post_attention_layernorm", "norm2"),
)
_ENCODER = (
    ("embeddings.patch_embedding", "patch_embedding.conv"),
    ("embeddings.position_embedding.weight", "patch_embedding.position_embedding"),
    ("layers.", "blocks."),
    ("self_attn", "attn"),
    ("layer_norm1", "ln1"),
    ("layer_norm2", "ln2"),
    ("post_layernorm", "layer_norm"),
)
_TILES = "its code splits a large image into tiles, and a bundle sees each as one view: as with max_img_size {}"


def recognise(config: Mapping[str, Any]) -> bool:
    return all(mark in config for mark in MARKS)


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
    _refuse(config)
    if not (folder / JSON).is_file():
        raise CheckpointError(
            "the checkpoint has no tokenizer: nanoVLM takes it from the hub by its name",
            hint=f"hf download {config.get('lm_tokenizer')} --include 'tokenizer*' --local-dir {folder}",
        )
    family = decoders.find("llama")
    decoder = decoder_config(family, _renamed(config, TEXT))
    eyes: ModuleType = vision.find("siglip_vision_model")
    encoder: VisionConfig = eyes.from_config(_renamed(config, SEEN), select_layer=None)
    weights = weights_of(folder, adapter)
    module, _ = projectors.find("pixel_shuffle")
    shape = ProjectorConfig(inputs=encoder.hidden, hidden=decoder.hidden, grid=encoder.grid)
    projector = projectors.configure(module, shape, {"scale_factor": config["mp_pixel_shuffle_factor"]})
    image_tokens: int = module.tokens(projector)
    if (told := config.get("mp_image_token_length", image_tokens)) != image_tokens:
        raise CheckpointError(
            f"mp_image_token_length is {told!r}, and an image gives {image_tokens} embeddings",
            hint="do vit_img_size and mp_pixel_shuffle_factor belong to the checkpoint?",
        )
    decoder = replace(decoder, context=shortened(context, decoder.context, image_tokens))
    components = {
        "vision": _vision(tower.component(eyes, encoder, ""), encoder.hidden),
        "projector": projector_component(module, projector, "MP.".__add__),
        "decoder": _language(decoder_component(family, decoder, "", "head."), weights),
    }
    check(components.values(), weights, re.compile(r"decoder\.rotary_embd\.inv_freq|decoder\.head\.weight"))
    template = config.get("lm_chat_template")
    checkpoint = Checkpoint(
        name=folder.resolve().name,
        license=license_of(folder, config),
        spec=VLMSpec(
            image=image_spec(encoder.image_size, "stretch", "bicubic", (0.0,) * 3, (1.0,) * 3),
            prompt=prompt_spec(folder, {}, image_tokens, decoder.vocab),
            decoder=decoder_spec(decoder),
            vision=vision_spec(encoder),
        ),
        components=components,
        weights=weights,
        folder=folder,
        sentencepiece=None,
        small=small_files(folder),
        templates={"lm_chat_template of config.json": template} if template else {},
        origins={},
        published=False,
        special=tokenizer.special_ids(folder),
        notes=(*tokenizer.notes(folder, decoder.vocab), _TILES.format(encoder.image_size)),
        added=_added(config),
    )
    return _asked(checkpoint, config)


def _refuse(config: Mapping[str, Any]) -> None:
    """What is missing, or would make another model if it were passed over."""
    if missing := [key for key in (*TEXT, *SEEN, *MARKS) if key not in config]:
        raise CheckpointError(f"config.json has no {missing[0]}", hint="nanoVLM writes all of them: is it complete?")
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{key} is {config[key]!r}, which is not supported", hint=f"it must be {value}")
    for key, value in config.items():
        known = key in (*TEXT, *SEEN, *FIXED, *_READ) or _IRRELEVANT.fullmatch(key)
        if _OWN.fullmatch(key) and not known and value:
            raise CheckpointError(
                f"config.json has {key} {value!r}, which nanoVLM does not have",
                hint="take it out if the checkpoint was trained without it",
            )
    if not isinstance(config.get("lm_chat_template", ""), str):
        raise CheckpointError(f"lm_chat_template is {config['lm_chat_template']!r}", hint="a chat template")


def _renamed(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {theirs: config[own] for own, theirs in names.items()}


def _spelled(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    for ours, theirs in renames:
        name = name.replace(ours, theirs)
    return name


def _vision(component: Component, width: int) -> Component:
    """Queries, keys and values are one tensor there, positions `[1, N, D]`."""
    keys = {}
    for name in component.keys:
        theirs = "vision_encoder." + _spelled(name, _ENCODER)
        part = re.fullmatch(r"(.*\.attn\.)([qkv])(_proj\..*)", theirs)
        if part:
            keys[name] = Source((f"{part[1]}qkv{part[3]}",), Split("qkv".index(part[2]) * width, width))
        else:
            keys[name] = Source((theirs,), Squeeze() if theirs.endswith("position_embedding") else None)
    return replace(component, keys=keys)


def _language(component: Component, weights: Weights) -> Component:
    """A file of safetensors holds a tied table once, by either of its names."""
    table = ("decoder.token_embedding.weight", "decoder.head.weight")
    once = {} if table[0] in weights else {table[0]: table[1]}
    keys = {}
    for ours, source in component.keys.items():
        names = (f"decoder.{_spelled(name, _DECODER)}" for name in source.names)
        keys[ours] = replace(source, names=tuple(once.get(name, name) for name in names))
    return replace(component, keys=keys)


def _added(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The special tokens that its code puts behind the tokenizer's own, in their order."""
    told = config.get("vlm_extra_tokens") or {}
    if not isinstance(told, Mapping) or not all(isinstance(token, str) and token for token in told.values()):
        raise CheckpointError(f"vlm_extra_tokens is {told!r}", hint="a JSON object of tokens by their role")
    return tuple(told.values())


def _asked(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Checkpoint:
    """With the tokens that stand before an image that is one view."""
    told = config.get("vlm_extra_tokens") or {}
    before = told.get("global_image_token", told.get("r1c1", ""))
    texts = tokenizers.Tokenizer.from_str(checkpoint.tokenizer_json())
    special = {token.content: (i, token) for i, token in texts.get_added_tokens_decoder().items() if token.special}
    last = max(texts.get_vocab(with_added_tokens=True).values())
    if checkpoint.added and (base := config.get("lm_base_vocab_size")) is not None:
        first = texts.token_to_id(checkpoint.added[0])
        if first != base or last >= checkpoint.spec.decoder.vocab:
            raise CheckpointError(
                f"lm_base_vocab_size is {base!r}, and {checkpoint.added[0]!r} is the token {first} of this tokenizer",
                hint=f"copy the files of {config.get('lm_tokenizer')!r} beside config.json",
            )
    image_text = before + MARK
    prompt = replace(checkpoint.spec.prompt, image=pieces(image_text, special, MARK))
    return replace(checkpoint, spec=replace(checkpoint.spec, prompt=prompt), image_text=image_text)
