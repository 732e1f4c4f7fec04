"""What the dialects of folders in transformers' files read in the same way: decoder, projector, tokenizer, stop ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from edge.errors import CheckpointError, UsageError
from edge.spec import PromptSpec
from exporters.checkpoints import buildable
from exporters.models.component import Component
from exporters.models.decoders import DecoderConfig, Family
from exporters.models.projectors import ProjectorConfig
from exporters.models.source import Source
from exporters.sources import chat_template, preprocessor, stop_ids, tokenizer
from exporters.sources.checkpoint import check_numbers
from exporters.sources.published import prompt

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


def refuse_options(mmproj: Path | None, vision_tower: Path | None = None) -> None:
    """Of a call, those that do not go with this folder. Raises UsageError where one is given."""
    if mmproj:
        raise UsageError("--mmproj goes with a decoder's GGUF file", hint=f"edge export MODEL.gguf --mmproj {mmproj}")
    if vision_tower:
        raise UsageError("--vision-tower does not go with this checkpoint, which has its own", hint="leave it out")


def small_files(folder: Path, described: Iterable[Path] = ()) -> tuple[Path, ...]:
    """What else than the weights a checkpoint is read from."""
    return (*filter(Path.is_file, (folder / name for name in SMALL)), *chat_template.files(folder), *described)


@contextmanager
def defaults_named(left_out: Mapping[str, Mapping[str, int]]) -> Iterator[None]:
    """An error about sizes names those that no config tells: the defaults that stand for them may be what is wrong."""
    try:
        yield
    except CheckpointError as error:
        told = [
            f"\n  {place} has no {k}: {v}, the default" for place, sizes in left_out.items() for k, v in sizes.items()
        ]
        raise CheckpointError(error.message + "".join(told), hint=error.hint) from error


def section(config: Mapping[str, Any], name: str, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """An object of config.json; `default` where there is none. Raises CheckpointError on anything else."""
    found = config.get(name)
    if found is None and default is not None:
        return default
    if not isinstance(found, Mapping):
        raise CheckpointError(f"config.json has {name} {found!r}", hint="it must be a JSON object")
    return found


def flag(config: Mapping[str, Any], name: str) -> bool:
    """Whether config.json has it true. Raises CheckpointError where it is neither true nor false."""
    found = config.get(name, False)
    if not isinstance(found, bool):
        raise CheckpointError(f"config.json has {name} {found!r}", hint="true or false")
    return found


def decoder_config(family: Family, config: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
    """Raises CheckpointError where `config` describes no decoder that can be built."""
    try:
        decoder = family.from_config(config)
        check_numbers(decoder)
        whole = buildable(decoder)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{where} does not describe a language model: {error!r}", hint="download the checkpoint again"
        ) from error
    if not whole:
        raise CheckpointError(f"the decoder of {where} cannot be built: {decoder}", hint=f"is {where} complete?")
    return decoder


def projector_component(module: ModuleType, config: ProjectorConfig, key: Callable[[str], str]) -> Component:
    """`key` is the checkpoint's name of a parameter."""
    component = Component("projector", partial(module.Projector, config), {})
    transforms = module.transforms(config) if hasattr(module, "transforms") else {}
    names = component.skeleton().state_dict()
    return replace(component, keys={name: Source((key(name),), transforms.get(name)) for name in names})


def decoder_component(family: Family, config: DecoderConfig, prefix: str, head: str) -> Component:
    """Of a checkpoint that names its language model's tensors with `prefix`, and its head's with `head`."""
    keys = {
        name: replace(source, names=tuple(re.sub(r"^lm_head\.", lambda _: head, own) for own in source.names))
        for name, source in family.keys(config, prefix).items()
    }
    return Component("decoder", partial(family.Decoder, config), keys)


def prompt_spec(folder: Path, config: Mapping[str, Any], image_tokens: int, vocab: int) -> PromptSpec:
    """Vicuna's, with the ids of this checkpoint; `config` may name where an answer ends."""
    stops = stop_ids.read(folder, config, tokenizer.special_ids(folder).eos, vocab)
    return prompt(image_tokens, tokenizer.bos_id(folder, vocab), stops)
