"""Which prompt an export writes: the one that is asked for, that the checkpoint's own template renders, or that all
models of its family learned."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import tokenizers

from edge.errors import CheckpointError, UsageError
from edge.prompt import MARK, TEXT
from edge.spec import PromptSpec, parse
from exporters import chat_template
from exporters.checkpoint import Checkpoint
from exporters.published import PROMPTS

FILE = "file"  # what a manifest says of a prompt that was given so
# Settings of a config.json in which forks of LLaVA name the conversation; LLaVA itself stores none.
CONVERSATIONS = ("conv_mode", "conv_version", "conv_template", "conversation_template", "version")
# LLaVA's names of the conversations that can be spelled, and of the others.
_OURS = {"vicuna": "vicuna", "v1": "vicuna", "vicuna_v1": "vicuna", "llava_v1": "llava_v1"}
_OTHERS = ("default", "v0", "plain", "v0_plain", "v0_mmtag", "v1_mmtag", "llama_2", "llava_v0", "llava_llama_2", "mpt")
# LLaVA's programs take the conversation from the name of the checkpoint, the first of these that is found in it. Names
# of language models that were published later than they are listed too: none of those learned Vicuna's prompt.
_NAMES = (
    (r"llama-?2", "llava_llama_2"),
    (r"llama-?3", "llava_llama_3"),
    (r"mistral|mixtral", "mistral_instruct"),
    (r"gemma", "gemma_instruct"),
    (r"qwen", "qwen"),
    (r"v1\.6-34b", "chatml_direct"),
    (r"v1|vicuna", "vicuna"),
    (r"(?<![a-z])mpt(?![a-z])", "mpt"),
    (r"(?<![a-z])v0(?![\d.])", "llava_v0"),
)
_STEP = "checkpoint-"  # a folder of a training run, which is named after the one around it
_TEXTS = ("system", "user", "assistant", "generation", "image", "default_system")
_HINT = f"--prompt {'|'.join(PROMPTS)} if the model learned that one, or --prompt FILE with its own"


def settle(checkpoint: Checkpoint, asked: str | None) -> tuple[Checkpoint, str | None]:
    """The checkpoint with the prompt to export, and what the user should be told of it. `asked` is a name of PROMPTS or
    a JSON file with the fields of PromptSpec.

    Raises UsageError on what is neither, CheckpointError where the checkpoint says a prompt that cannot be spelled.
    """
    base, note = checkpoint.spec.prompt, None
    if asked is not None:
        given = asked if asked in PROMPTS else FILE
        spec = _of_file(Path(asked), checkpoint) if given == FILE else named(asked, base)
        return replace(checkpoint, spec=replace(checkpoint.spec, prompt=spec), prompt_given=given), None
    if checkpoint.templates:
        name = _of_templates(checkpoint)
    else:
        name, note = _of_names(checkpoint)
    return replace(checkpoint, spec=replace(checkpoint.spec, prompt=named(name, base))), note


def named(name: str, base: PromptSpec) -> PromptSpec:
    """The published prompt of this name, with the ids of `base`, which is Vicuna's."""
    return replace(base, default_system=PROMPTS[name])


def _of_templates(checkpoint: Checkpoint) -> str:
    """The published prompt that all of the checkpoint's templates render."""
    base, ends = checkpoint.spec.prompt, _ends(checkpoint)
    try:
        departures = {
            name: {
                where: chat_template.departure(text, named(name, base), *ends)
                for where, text in checkpoint.templates.items()
            }
            for name in PROMPTS
        }
    except ModuleNotFoundError as error:
        raise CheckpointError(
            "the checkpoint has a chat template of its own, which cannot be read: jinja2 is not installed",
            hint=f"pip install jinja2; or {_HINT}",
        ) from error
    for name, found in departures.items():
        if not any(found.values()):
            return name
    first, *_ = PROMPTS
    lines = [f"\n  {where} {words or f'renders {first}'}" for where, words in departures[first].items()]
    raise CheckpointError(
        "the checkpoint has a chat template of its own, and it is no prompt that a bundle can spell yet:"
        + "".join(lines),
        hint=_HINT,
    )


def _ends(checkpoint: Checkpoint) -> tuple[str, str]:
    """The texts of the ids that begin a prompt and end an answer."""
    texts = tokenizers.Tokenizer.from_str(checkpoint.tokenizer_json())
    prompt = checkpoint.spec.prompt
    begin = "" if prompt.bos_id is None else texts.id_to_token(prompt.bos_id)
    return begin or "", texts.id_to_token(prompt.end_id) or ""


def _of_names(checkpoint: Checkpoint) -> tuple[str, str | None]:
    """The published prompt of a checkpoint without a template, and a note where nothing but its layout says so."""
    told = {where: value for where, value in checkpoint.origins.items() if where in CONVERSATIONS}
    for where, value in told.items():
        if value in _OURS:
            return _OURS[value], None
        if where != "version" or value in _OTHERS:
            raise CheckpointError(f"{where} is {value!r}: a prompt that a bundle cannot spell yet", hint=_HINT)
    if checkpoint.published:
        return "vicuna", None
    own = str(checkpoint.folder.resolve()) if checkpoint.name.startswith(_STEP) else checkpoint.name
    names = {"its name": own} | {k: v for k, v in checkpoint.origins.items() if k not in told}
    found = {where: _conversation(str(name)) for where, name in names.items()}
    for where, conversation in found.items():
        if conversation not in (None, "vicuna"):
            raise CheckpointError(
                f"{where} is {names[where]!r}, which LLaVA's own programs ask with the prompt {conversation!r}; the "
                "checkpoint has no chat template, and a bundle cannot spell that prompt yet",
                hint=_HINT,
            )
    if any(found.values()):
        return "vicuna", None
    return "vicuna", f"nothing in the checkpoint says which prompt it learned; LLaVA-1.5's is taken: {_HINT}"


def _conversation(name: str) -> str | None:
    last, *before = [part.lower() for part in reversed(Path(name).parts)] or [""]
    named = f"{before[0]}_{last}" if before and last.startswith(_STEP) else last
    return next((found for pattern, found in _NAMES if re.search(pattern, named)), None)


def _of_file(path: Path, checkpoint: Checkpoint) -> PromptSpec:
    """What belongs to the checkpoint may be left out: how many rows a picture takes, and the ids."""
    base = checkpoint.spec.prompt
    told = _object(path)
    known = [field.name for field in fields(PromptSpec)]
    if strange := told.keys() - set(known):
        raise UsageError(f"{path} has unknown fields: {', '.join(sorted(strange))}", hint="known: " + ", ".join(known))
    own = {name: getattr(base, name) for name in ("image_tokens", "bos_id", "end_id", "stop_ids")}
    try:
        spec = parse(PromptSpec, {**own, **told})
    except ValueError as error:
        raise UsageError(f"{path} {error}", hint="the fields are those of a manifest's prompt") from error
    if faults := _faults(spec, base, checkpoint):
        raise UsageError(f"{path}: {'; '.join(faults)}", hint="the fields are those of a manifest's prompt")
    return spec


def _object(path: Path) -> Mapping[str, Any]:
    known = "a name: " + ", ".join(PROMPTS) + "; or a JSON file"
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"no prompt is named {str(path)!r}, and there is no such file", hint=known) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no prompt: {error}", hint=known) from error
    if not isinstance(told, dict):
        raise UsageError(f"{path} holds no JSON object", hint=known)
    return told


def _faults(spec: PromptSpec, base: PromptSpec, checkpoint: Checkpoint) -> list[str]:
    """What a manifest would be refused for, or would silently mean something else."""
    faults = [
        f"{name} is {piece!r}, and holds {mark} {piece.count(mark)} times, not once"
        for name, mark in (("system", TEXT), ("user", TEXT), ("assistant", TEXT), ("image", MARK))
        if (piece := getattr(spec, name)).count(mark) != 1
    ]
    if spec.image_tokens != base.image_tokens:
        faults.append(f"image_tokens is {spec.image_tokens}, and the projector makes {base.image_tokens}")
    vocab = checkpoint.spec.decoder.vocab
    ids = {"bos_id": [spec.bos_id or 0], "end_id": [spec.end_id], "stop_ids": spec.stop_ids}
    faults += [f"{name} is {found}, of {vocab} tokens" for name, of in ids.items() for found in of if found >= vocab]
    if spec.end_id not in spec.stop_ids:
        faults.append(f"end_id {spec.end_id} is not one of the stop_ids {list(spec.stop_ids)}")
    if "" in spec.stop_strings:
        faults.append("stop_strings has an empty text")
    special = [token.content for token in _special(checkpoint)]
    for name in _TEXTS:
        text = getattr(spec, name).replace(MARK, "")
        faults += [
            f"{name} has the special token {token!r}, which this version would spell out as text"
            for token in special
            if token and token in text
        ]
    return faults


def _special(checkpoint: Checkpoint) -> list[tokenizers.AddedToken]:
    added = tokenizers.Tokenizer.from_str(checkpoint.tokenizer_json()).get_added_tokens_decoder().values()
    return [token for token in added if token.special]
