"""The dialect of LLaVA's own code base: MobileVLM V1 and V2, and LLaVA-1.5 (`mm_*` keys in config.json)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from edge.errors import CheckpointError, UsageError
from edge.spec import ImageSpec, PromptSpec, VLMSpec
from exporters import chat_template, stop_ids, tokenizer, tower
from exporters.checkpoint import Checkpoint, check, check_numbers, license_of, read_json
from exporters.checkpoints import buildable, decoder_spec, image_spec, shortened
from exporters.models import projectors
from exporters.models.component import Component
from exporters.models.decoders import DecoderConfig, llama
from exporters.models.projectors import ProjectorConfig
from exporters.models.vision.clip import TowerConfig
from exporters.prompts import CONVERSATIONS
from exporters.published import MEAN, STD, prompt
from exporters.sentencepiece import SentencePiece
from exporters.weights import Weights

MODEL_TYPES = ("mobilevlm", "mobilellama", "llava_llama", "llava")
PROJECTOR = "model.mm_projector."
SMALL = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
FITS: dict[str | None, Literal["pad", "crop"]] = {"pad": "pad", None: "crop", "square": "crop"}
RESAMPLE: dict[int, Literal["bicubic", "bilinear"]] = {3: "bicubic", 2: "bilinear"}  # Pillow's numbers


def recognise(config: Mapping[str, Any]) -> bool:
    # transformers writes "llava" too, for a layout of its own that has no mm_* keys.
    return config.get("model_type") in MODEL_TYPES and ("mm_vision_tower" in config or config["model_type"] != "llava")


def read(folder: Path, *, vision_tower: Path | None, mmproj: Path | None, context: int | None) -> Checkpoint:
    """Raises CheckpointError on what is missing or not understood, UsageError on a context that cannot be."""
    if mmproj:
        raise UsageError("--mmproj goes with a decoder's GGUF file", hint=f"edge export MODEL.gguf --mmproj {mmproj}")
    config = read_json(folder / "config.json")
    _refuse(config)
    decoder = _decoder(config)
    seen = tower.find(folder, config, Weights.open(folder), vision_tower)
    module, projector = _projector(config, seen.config, decoder.hidden)
    image_tokens: int = module.tokens(projector)
    decoder = replace(decoder, context=shortened(context, decoder.context, image_tokens))
    components = {
        "vision": seen.component,
        "projector": _projector_component(module, projector),
        "decoder": Component("decoder", partial(llama.Decoder, decoder), llama.keys(decoder)),
    }
    tied = r"|lm_head\.weight" if decoder.tied else ""  # some savers store it all the same
    check(components.values(), seen.weights, re.compile(rf".*\.rotary_emb\.inv_freq|{seen.ignored}{tied}"))
    spec = VLMSpec(
        image=_image(config, seen.config.image_size, seen.folder, folder),
        prompt=_prompt(config, folder, image_tokens, decoder.vocab),
        decoder=decoder_spec(decoder),
    )
    return Checkpoint(
        name=folder.resolve().name,
        license=license_of(folder, config),
        spec=spec,
        components=components,
        weights=seen.weights,
        folder=folder,
        sentencepiece=SentencePiece.open(folder),
        small=(*filter(Path.is_file, (folder / name for name in SMALL)), *chat_template.files(folder)),
        templates=chat_template.find(folder),
        origins={key: config[key] for key in (*CONVERSATIONS, "_name_or_path") if config.get(key)},
        published=config["model_type"].startswith("mobile"),
        notes=tokenizer.notes(folder, decoder.vocab),
    )


def _refuse(config: Mapping[str, Any]) -> None:
    """What would make another model if it were passed over."""
    if config.get("quantization_config"):
        raise CheckpointError("the checkpoint is quantised already", hint="give the one in float16 or bfloat16")
    if config.get("mm_use_im_start_end"):
        raise CheckpointError(
            "mm_use_im_start_end is true: pictures between special tokens are not supported",
            hint="the published models have false",
        )
    if (fit := config.get("image_aspect_ratio")) not in tuple(FITS):
        raise CheckpointError(f"image_aspect_ratio {fit!r} is not supported", hint="one of: pad, square, or none")


def _decoder(config: Mapping[str, Any]) -> DecoderConfig:
    try:
        decoder = llama.from_config(config)
        check_numbers(decoder)
        whole = buildable(decoder)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"config.json does not describe a language model: {error!r}", hint="download the checkpoint again"
        ) from error
    if not whole:
        raise CheckpointError(f"the decoder of config.json cannot be built: {decoder}", hint="is config.json complete?")
    return decoder


def _projector(config: Mapping[str, Any], seen: TowerConfig, hidden: int) -> tuple[ModuleType, ProjectorConfig]:
    module, depth = projectors.find(str(config.get("mm_projector_type", "linear")))  # upstream's default
    if (width := config.get("mm_hidden_size", seen.hidden)) != seen.hidden:
        raise CheckpointError(
            f"mm_hidden_size is {width}, the vision tower is {seen.hidden} wide", hint="is it the right vision tower?"
        )
    cls = seen.select_feature == "cls_patch"
    return module, ProjectorConfig(inputs=seen.hidden, hidden=hidden, grid=seen.grid, cls=cls, depth=depth)


def _projector_component(module: ModuleType, config: ProjectorConfig) -> Component:
    component = Component("projector", partial(module.Projector, config), {})
    return replace(component, keys={name: (PROJECTOR + name,) for name in component.skeleton().state_dict()})


def _image(config: Mapping[str, Any], size: int, tower_folder: Path | None, folder: Path) -> ImageSpec:
    places = [place / "preprocessor_config.json" for place in (tower_folder, folder) if place]
    told = next((read_json(place) for place in places if place.is_file()), {})
    if (resample := told.get("resample", 3)) not in tuple(RESAMPLE):
        raise CheckpointError(f"preprocessor_config.json has resample {resample!r}", hint="2 (bilinear) or 3 (bicubic)")
    mean, std = _three(told, "image_mean", MEAN), _three(told, "image_std", STD)
    return image_spec(size, FITS[config.get("image_aspect_ratio")], RESAMPLE[resample], mean, std)


def _three(told: Mapping[str, Any], name: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(part) for part in told.get(name, default))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"preprocessor_config.json has {name} {told[name]!r}", hint="three numbers") from error
    return red, green, blue


def _prompt(config: Mapping[str, Any], folder: Path, image_tokens: int, vocab: int) -> PromptSpec:
    stops = stop_ids.read(folder, config, tokenizer.special_ids(folder).eos, vocab)
    return prompt(image_tokens, tokenizer.bos_id(folder, vocab), stops)
