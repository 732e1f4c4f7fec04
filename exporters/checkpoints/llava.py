"""The dialect of LLaVA's own code base: MobileVLM V1 and V2, and LLaVA-1.5 (`mm_*` keys in config.json)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from edge.errors import CheckpointError, UsageError
from edge.spec import PromptSpec, VLMSpec
from exporters import adapters, chat_template, mm_keys, preprocessor, stop_ids, tokenizer, tower
from exporters.checkpoint import Checkpoint, check, check_numbers, license_of, read_json
from exporters.checkpoints import buildable, decoder_spec, shortened, vision_spec
from exporters.models import projectors
from exporters.models.component import Component
from exporters.models.decoders import DecoderConfig, llama
from exporters.models.projectors import ProjectorConfig
from exporters.models.vision.clip import TowerConfig
from exporters.prompts import CONVERSATIONS
from exporters.published import prompt
from exporters.sentencepiece import SentencePiece
from exporters.weights import Weights

MODEL_TYPES = ("mobilevlm", "mobilellama", "llava_llama", "llava")
PROJECTOR = "model.mm_projector."
SMALL = (
    "config.json",
    "generation_config.json",
    *preprocessor.FILES,
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)


def recognise(config: Mapping[str, Any]) -> bool:
    # transformers writes "llava" too, for a layout of its own that has no mm_* keys.
    return config.get("model_type") in MODEL_TYPES and ("mm_vision_tower" in config or config["model_type"] != "llava")


def read(folder: Path, *, vision_tower: Path | None, mmproj: Path | None, context: int | None) -> Checkpoint:
    """Raises CheckpointError on what is missing or not understood, UsageError on a context that cannot be."""
    if mmproj:
        raise UsageError("--mmproj goes with a decoder's GGUF file", hint=f"edge export MODEL.gguf --mmproj {mmproj}")
    config = read_json(folder / "config.json")
    mm_keys.refuse(config)
    decoder = _decoder(config)
    weights = Weights.open(folder)
    adapters.refuse_delta(weights)
    adapters.check_projector(folder, weights, PROJECTOR)
    seen = tower.find(folder, config, weights, vision_tower)
    with _defaults_named({"config.json": llama.left_out(config), "the vision encoder's config": seen.left_out}):
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
    fit = mm_keys.FITS[config.get("image_aspect_ratio")]
    spec = VLMSpec(
        image=preprocessor.find(filter(None, (seen.folder, folder)), seen.config.image_size, fit),
        prompt=_prompt(config, folder, image_tokens, decoder.vocab),
        decoder=decoder_spec(llama, decoder),
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
        small=(*filter(Path.is_file, (folder / name for name in SMALL)), *chat_template.files(folder), *seen.described),
        templates=chat_template.find(folder),
        origins={key: config[key] for key in (*CONVERSATIONS, "_name_or_path") if config.get(key)},
        published=config["model_type"].startswith("mobile"),
        notes=tokenizer.notes(folder, decoder.vocab),
    )


@contextmanager
def _defaults_named(left_out: Mapping[str, Mapping[str, int]]) -> Iterator[None]:
    """An error about sizes names those that no config tells: the defaults that stand for them may be what is wrong."""
    try:
        yield
    except CheckpointError as error:
        told = [
            f"\n  {place} has no {k}: {v}, the default" for place, sizes in left_out.items() for k, v in sizes.items()
        ]
        raise CheckpointError(error.message + "".join(told), hint=error.hint) from error


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


def _prompt(config: Mapping[str, Any], folder: Path, image_tokens: int, vocab: int) -> PromptSpec:
    stops = stop_ids.read(folder, config, tokenizer.special_ids(folder).eos, vocab)
    return prompt(image_tokens, tokenizer.bos_id(folder, vocab), stops)
