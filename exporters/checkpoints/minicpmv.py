"""The dialect of MiniCPM-V's own code (`openbmb/MiniCPM-V-2_6`, `-4`): a SigLIP over patches, a resampler, and a Qwen2
or Llama, whose images are slices (arXiv 2408.01800)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import tokenizers

from edge.errors import CheckpointError
from edge.spec import PromptSpec, VLMSpec
from edge.spec.pieces import Text, ViewPieces
from exporters.checkpoints import decoder_spec, shortened, vision_spec
from exporters.models import decoders, projectors
from exporters.models.component import Component
from exporters.models.decoders import DecoderConfig, Family
from exporters.models.projectors import ProjectorConfig
from exporters.models.vision import navit
from exporters.models.vision.navit import TowerConfig
from exporters.sources import chat_template, slices_preprocessor, tokenizer, tower
from exporters.sources.checkpoint import Checkpoint, check, config_of, license_of, weights_of
from exporters.sources.checkpoint_folder import (
    decoder_component,
    decoder_config,
    flag,
    prompt_spec,
    refuse_options,
    section,
    small_files,
)
from exporters.sources.lora import Adapter
from exporters.sources.sentencepiece import SentencePiece
from exporters.sources.slices_preprocessor import Told
from exporters.sources.template_pieces import Special, pieces
from exporters.sources.template_rendered import NUMBER
from exporters.sources.weights import Weights

MODEL_TYPES = ("minicpmv",)
MARKS = ("slice_config", "query_num", "vision_config")
# The version of its code -> the language model's `model_type`. Others have another prompt, or another resampler.
VERSIONS = {"2.6": "qwen2", "4.0": "llama", "4": "llama"}
DEFAULTS: Mapping[str, Any] = {"query_num": 64, "drop_vision_last_layer": False}
VISION, PROJECTOR, DECODER, HEAD = "vpm.", "resampler.", "llm.model.", "llm.lm_head."
IMAGE = "(<image>./</image>)"  # an image in what is put into the template
# A key that begins so belongs to the model, not to training or to transformers, and is read or refused.
_OWN = re.compile(r"(image|vision|slice|query|resampler|drop|use_image|insert|downsample|audio|init_|tts|stream).*")
_READ = (
    *DEFAULTS,
    *MARKS,
    "image_size",  # of nothing that is computed: the encoder's is in vision_config
    "vision_batch_size",
    "batch_vision_input",
    "slice_mode",
    "use_image_id",
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
    weights = weights_of(folder, adapter)
    family, decoder = _decoder(told, weights)
    rows = projectors.count(told, "query_num")
    seen = slices_preprocessor.find(folder, config, rows)
    encoder = _encoder(told, seen)
    module, projector = _projector(told, encoder, decoder.hidden)
    decoder = replace(decoder, context=shortened(context, decoder.context, rows))
    components = {
        "vision": tower.component(navit, encoder, VISION),
        "projector": Component("projector", partial(module.Projector, projector), module.keys(projector, PROJECTOR)),
        "decoder": decoder_component(family, decoder, DECODER, HEAD),
    }
    ignored = rf".*\.rotary_emb\.inv_freq|{PROJECTOR}pos_embed|{re.escape(VISION)}(?:{navit.ignored(encoder)})"
    check(components.values(), weights, re.compile(ignored))
    checkpoint = Checkpoint(
        name=folder.resolve().name,
        license=license_of(folder, config),
        spec=VLMSpec(
            image=seen.spec(encoder.patches),
            prompt=prompt_spec(folder, config, rows, decoder.vocab),
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
        image_mark=IMAGE,
        image_text=f"{_overview(seen)}\n",
    )
    prompt = _shown(checkpoint.spec.prompt, seen, _special(checkpoint, seen))
    return replace(checkpoint, spec=replace(checkpoint.spec, prompt=prompt))


def _refuse(config: Mapping[str, Any]) -> None:
    """What would make another model if it were passed over."""
    if config.get("quantization_config"):
        raise CheckpointError("the checkpoint is quantised already", hint="give the one in float16 or bfloat16")
    if (version := str(config.get("version"))) not in VERSIONS:
        raise CheckpointError(
            f"config.json has version {config.get('version')!r} of MiniCPM-V", hint="one of: " + ", ".join(VERSIONS)
        )
    for key, value in config.items():
        if _OWN.fullmatch(key) and key not in _READ and value:
            raise CheckpointError(
                f"config.json has {key} {value!r}, which MiniCPM-V {version} does not have",
                hint="take it out if the checkpoint was trained without it",
            )


def _decoder(told: Mapping[str, Any], weights: Weights) -> tuple[Family, DecoderConfig]:
    """Its config is config.json's own fields. A head that the checkpoint holds is computed with."""
    family = decoders.find(VERSIONS[str(told["version"])])
    tied = flag(told, "tie_word_embeddings") and f"{HEAD}weight" not in weights
    config = {key: value for key, value in told.items() if key not in _READ}
    config |= {"tie_word_embeddings": tied, "rope_scaling": _rope(told)}
    decoder = decoder_config(family, config)
    factors = (decoder.rope.scaling or {}).get("factors")
    if factors is not None and len(factors) != decoder.rope.width // 2:
        raise CheckpointError(
            f"rope_scaling has {len(factors)} factors for {decoder.rope.width} features", hint="one for each two"
        )
    return family, decoder


def _rope(told: Mapping[str, Any]) -> object:
    """The scaling of rotary positions. As far as `longrope` was trained without being stretched, it divides frequencies
    by its short factors, and does nothing else (arXiv 2402.13753)."""
    rope = told.get("rope_scaling")
    if not isinstance(rope, Mapping) or rope.get("rope_type", rope.get("type")) != "longrope":
        return rope
    trained, most = rope.get("original_max_position_embeddings"), told.get("max_position_embeddings")
    factors = rope.get("short_factor")
    if type(trained) is not int or type(most) is not int or most > trained or rope.get("attention_factor"):
        return rope
    if not isinstance(factors, list) or not all(type(f) in (int, float) and 0 < f < math.inf for f in factors):
        return rope
    return {"rope_type": "factors", "factors": factors}


def _encoder(told: Mapping[str, Any], seen: Told) -> TowerConfig:
    config = {**section(told, "vision_config"), "model_type": "siglip_vision_model"}
    kind = section(told, "vision_config").get("model_type", "siglip")
    if kind not in ("siglip", "siglip_vision_model"):
        raise CheckpointError(f"vision_config is of the model_type {kind!r}", hint="siglip, as published")
    found = navit.from_config(config, view_size=seen.size, drop_last=flag(told, "drop_vision_last_layer"))
    if found.patch_size != seen.patch:
        raise CheckpointError(
            f"patch_size is {seen.patch} of the image processor, and {found.patch_size} in vision_config",
            hint="do they belong to the same checkpoint?",
        )
    return found


def _projector(told: Mapping[str, Any], seen: TowerConfig, hidden: int) -> tuple[ModuleType, ProjectorConfig]:
    module, _ = projectors.find("minicpmv")
    shape = ProjectorConfig(inputs=seen.hidden, hidden=hidden, grid=seen.grid)
    config: ProjectorConfig = module.from_config(shape, told, longest=seen.patches.longest)
    return module, config


def _overview(seen: Told) -> str:
    """What the processor writes for the whole, which IMAGE stands for."""
    number = f"{seen.tokens['im_id_start']}{NUMBER}{seen.tokens['im_id_end']}" if seen.numbered else ""
    return f"{number}{seen.tokens['im_start']}{IMAGE}{seen.tokens['im_end']}"


def _shown(prompt: PromptSpec, seen: Told, special: Special) -> PromptSpec:
    """What an image becomes: a line; and of several views, the whole and a line for each row of slices."""
    whole = pieces(_overview(seen), special, IMAGE)
    views = None
    if seen.slices > 1:
        tile = pieces(f"{seen.tokens['slice_start']}{IMAGE}{seen.tokens['slice_end']}", special, IMAGE)
        row = (tile,) * seen.slices
        views = ViewPieces((row,) * seen.slices, (Text("\n"),), whole, overview_first=True)
    return replace(prompt, image=(*whole, Text("\n")), views=views)


def _special(checkpoint: Checkpoint, seen: Told) -> Special:
    """The tokenizer's special tokens. Raises CheckpointError where it lacks one that stands around an image."""
    texts = tokenizers.Tokenizer.from_str(checkpoint.tokenizer_json())
    special = {token.content: (i, token) for i, token in texts.get_added_tokens_decoder().items() if token.special}
    for name in seen.tokens.values():
        if name not in special:
            raise CheckpointError(
                f"the tokenizer has no special token {name!r}",
                hint="are tokenizer.json, added_tokens.json and tokenizer_config.json of this checkpoint?",
            )
    return special
