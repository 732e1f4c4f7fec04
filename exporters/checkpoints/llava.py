"""The dialect of LLaVA's own code base: MobileVLM V1 and V2, LLaVA-1.5, Bunny, and their kin of other decoders (`mm_*`
keys in config.json)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from edge.errors import CheckpointError
from edge.spec import ImageSpec, VLMSpec
from exporters.checkpoints import decoder_spec, shortened, vision_spec
from exporters.models import decoders, projectors
from exporters.models.component import Component
from exporters.models.newline import with_newline
from exporters.models.projectors import ProjectorConfig
from exporters.models.vision import VisionConfig
from exporters.sources import adapters, anyres, chat_template, mm_keys, preprocessor, tokenizer, tower
from exporters.sources.checkpoint import Checkpoint, check, config_of, license_of, weights_of
from exporters.sources.checkpoint_folder import (
    decoder_config,
    defaults_named,
    projector_component,
    prompt_spec,
    refuse_options,
    small_files,
)
from exporters.sources.lora import Adapter
from exporters.sources.prompts import CONVERSATIONS
from exporters.sources.sentencepiece import SentencePiece

MODEL_TYPES = (
    "mobilevlm",
    "mobilellama",
    "llava_llama",
    "llava",
    "llava_mistral",
    "llava_qwen",
    "llava_qwen2",
    "llava_qwen3",
    "llava-qwen2",  # nanoLLaVA
    "bunny-llama",
    "bunny-phi",
    "bunny-phi3",
    "bunny-qwen2",
    "bunny-stablelm",
)
TILED = ("llava", "llava_llama", "llava_mistral", "llava_qwen", "llava_qwen2", "llava_qwen3")  # LLaVA's own code
MARKS = ("mm_vision_tower",)  # transformers writes "llava" too, for a layout of its own that has no mm_* keys
PROJECTOR, NEWLINE = "model.mm_projector.", "model.image_newline"
_TEMPLATE = "the chat template is the language model's; the prompt is the one that Bunny's own programs ask with"


def recognise(config: Mapping[str, Any]) -> bool:
    return config["model_type"] != "llava" or any(mark in config for mark in MARKS)


def read(
    folder: Path,
    *,
    vision_tower: Path | None,
    mmproj: Path | None,
    context: int | None,
    adapter: Adapter | None,
) -> Checkpoint:
    """Raises CheckpointError on what is missing or not understood, UsageError on a context that cannot be."""
    refuse_options(mmproj)
    config = config_of(folder, adapter)
    module, depth = projectors.find(str(config.get("mm_projector_type", "linear")))  # upstream's default
    mm_keys.refuse(config, projectors.settings(module), tiles=config["model_type"] in TILED)
    family = decoders.find(config["model_type"])
    decoder = decoder_config(family, config)
    weights = weights_of(folder, adapter)
    adapters.refuse_delta(weights)
    adapters.check_projector(folder, weights, PROJECTOR)
    seen = tower.find(folder, config, weights, vision_tower)
    with defaults_named({"config.json": family.left_out(config), "the vision encoder's config": seen.left_out}):
        projector = projectors.configure(module, _place(config, seen.config, decoder.hidden, depth), config)
        ended = config.get("mm_patch_merge_type") == mm_keys.UNPAD
        image_tokens: int = module.tokens(projector) + ended
        decoder = replace(decoder, context=shortened(context, decoder.context, image_tokens))
        project = projector_component(module, projector, PROJECTOR.__add__)
        components = {
            "vision": seen.component,
            "projector": with_newline(project, decoder.hidden, NEWLINE) if ended else project,
            "decoder": Component("decoder", partial(family.Decoder, decoder), family.keys(decoder)),
        }
        tied = r"|lm_head\.weight" if decoder.tied else ""  # some savers store it all the same
        check(components.values(), seen.weights, re.compile(rf".*\.rotary_emb\.inv_freq|{seen.ignored}{tied}"))
    bunny = config["model_type"].startswith("bunny")
    templates = chat_template.find(folder)
    spec = VLMSpec(
        image=_image(folder, config, seen, projector, module.tokens(projector)),
        prompt=prompt_spec(folder, config, image_tokens, decoder.vocab),
        decoder=decoder_spec(decoder),
        vision=vision_spec(seen.config),
    )
    return Checkpoint(
        name=folder.resolve().name,
        license=license_of(folder, config),
        spec=spec,
        components=components,
        weights=seen.weights,
        folder=folder,
        sentencepiece=SentencePiece.open(folder),
        small=small_files(folder, seen.described),
        # Bunny's programs ask every model with Vicuna's prompt; a template is what its language model came with.
        templates={} if bunny else templates,
        origins={key: config[key] for key in (*CONVERSATIONS, "_name_or_path") if config.get(key)},
        published=bunny or config["model_type"].startswith("mobile"),
        special=tokenizer.special_ids(folder),
        notes=(*tokenizer.notes(folder, decoder.vocab), *(_TEMPLATE,) * (bunny and bool(templates))),
    )


def _image(
    folder: Path, config: Mapping[str, Any], seen: tower.Found, projector: ProjectorConfig, rows: int
) -> ImageSpec:
    """One view is padded where images are divided: as the code does with several in a question."""
    ratio, size, folders = config.get("image_aspect_ratio"), seen.config.image_size, filter(None, (seen.folder, folder))
    divided = str(ratio).startswith("anyres")
    fit = "pad" if divided else mm_keys.FITS[ratio]
    image = preprocessor.find(folders, size, fit, seen.family.PROCESSOR)
    if not divided:
        return image
    if image.resample != "bicubic":
        raise CheckpointError(
            f"the image processor resizes by {image.resample}, and LLaVA's code tiles by bicubic",
            hint="resample 3, as the published checkpoints",
        )
    most = anyres.most_tiles("image_aspect_ratio", ratio)
    return replace(
        image, views=anyres.spec(config.get(anyres.POINTS), projector.grid, rows, size, most, wide_first=True)
    )


def _place(config: Mapping[str, Any], seen: VisionConfig, hidden: int, depth: int) -> ProjectorConfig:
    if (width := config.get("mm_hidden_size", seen.hidden)) != seen.hidden:
        raise CheckpointError(
            f"mm_hidden_size is {width}, the vision tower is {seen.hidden} wide", hint="is it the right vision tower?"
        )
    return ProjectorConfig(inputs=seen.hidden, hidden=hidden, grid=seen.grid, cls=seen.cls, depth=depth)
