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

from edge.bundle import schema1
from edge.errors import CheckpointError, UsageError
from edge.spec import PromptSpec, parse
from edge.spec.pieces import Ids, Text
from exporters.gguf import rendering
from exporters.sources.checkpoint import Checkpoint
from exporters.sources.published import PROMPTS
from exporters.sources.published_templates import SPECIAL, TEMPLATES
from exporters.sources.template_pieces import cut
from exporters.sources.template_rendered import Template, Uncut, Vocabulary

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
_FIELDS = "the fields are those of a manifest's prompt (docs/export.md)"
NAMES = (*PROMPTS, *TEMPLATES)
_HINT = f"--prompt {'|'.join(NAMES)} if the model learned that one, or --prompt FILE with its own"
_KNOWN = "a name: " + ", ".join(NAMES) + "; a chat template: FILE.jinja; or a JSON file"
_DATE = "strftime_now"


def settle(checkpoint: Checkpoint, asked: str | None) -> tuple[Checkpoint, str | None]:
    """The checkpoint with the prompt to export, and what the user should be told of it. `asked` is a name of PROMPTS or
    TEMPLATES, a chat template (FILE.jinja) or a JSON file with the fields of a manifest's prompt.

    Raises UsageError on what is none of these, CheckpointError where the checkpoint says a prompt that is no pieces.
    """
    note = None
    if asked in PROMPTS:
        given, spec = asked, named(asked, checkpoint.spec.prompt)
    elif asked in TEMPLATES:
        special = {token.content for token in _special(checkpoint)}
        if lacking := [name for name in SPECIAL.get(asked, ()) if name not in special]:
            raise UsageError(
                f"the prompt {asked!r} has the special token {lacking[0]!r}, which this tokenizer lacks", hint=_HINT
            )
        given, spec = asked, _of_template(f"the prompt {asked!r}", TEMPLATES[asked], checkpoint)
    elif asked is not None:
        given, path = FILE, Path(asked)
        if path.suffix == ".jinja":
            spec = _of_template(str(path), _text(path), checkpoint)
        else:
            spec = _of_file(path, checkpoint)
    else:
        given = None
        spec, note = _of_templates(checkpoint) if checkpoint.templates else _of_names(checkpoint)
    return replace(checkpoint, spec=replace(checkpoint.spec, prompt=spec), prompt_given=given), note


def origin(checkpoint: Checkpoint, asked: str | None) -> str:
    """Where the prompt that `settle` takes is from, for people."""
    if asked is not None:
        return f"--prompt {asked}"
    if checkpoint.templates:
        return f"the chat template in {next(iter(checkpoint.templates))}"
    return "the one that its family learned: it has no chat template"


def named(name: str, base: PromptSpec) -> PromptSpec:
    """The published prompt of this name, with the ids of `base`, which is Vicuna's."""
    return replace(base, default_system=PROMPTS[name])


def _of_templates(checkpoint: Checkpoint) -> tuple[PromptSpec, str | None]:
    """What all of the checkpoint's templates render, and a note on what they render otherwise on another day."""
    found: dict[str, PromptSpec] = {}
    lines, notes = [], []
    for where, text in checkpoint.templates.items():
        try:
            template, found[where] = _cut(text, checkpoint)
            if template.differs(found[where]):
                notes.append(f"{where} writes several images of one question otherwise than the bundle's prompt does")
            lines.append(f"\n  {where} renders {_name(found[where], checkpoint) or template.excerpt()}")
        except Uncut as error:
            lines.append(f"\n  {where} {error}")
    specs = [*found.values()]
    if len(specs) < len(checkpoint.templates):
        raise CheckpointError(
            "the checkpoint has a chat template of its own, and it is no prompt that a bundle can spell:"
            + "".join(lines),
            hint=_HINT,
        )
    if any(spec != specs[0] for spec in specs):
        raise CheckpointError(
            "the checkpoint has several chat templates of its own, which disagree:" + "".join(lines), hint=_HINT
        )
    dated = next((where for where, text in checkpoint.templates.items() if _DATE in text), None)
    if dated:
        notes.append(f"{dated} may write today's date, and a bundle's prompt has that of {rendering.DAY}")
    return specs[0], "; ".join(notes) or None


def _name(spec: PromptSpec, checkpoint: Checkpoint) -> str | None:
    """Of the published prompt that this is."""
    return next((name for name in PROMPTS if spec == named(name, checkpoint.spec.prompt)), None)


def _cut(text: str, checkpoint: Checkpoint) -> tuple[Template, PromptSpec]:
    """A template, as the published prompt that it renders or as its own pieces. Raises Uncut, CheckpointError."""
    base = checkpoint.spec.prompt
    try:
        around = checkpoint.image_text, checkpoint.image_mark
        template = Template(text, base, _vocabulary(checkpoint), *around)
        published = (named(name, base) for name in PROMPTS)
        spec = next((spec for spec in published if template.differs(spec) is None), None)
        return template, spec or cut(template)
    except ModuleNotFoundError as error:
        raise CheckpointError(
            "a chat template cannot be read: jinja2 is not installed", hint=f"pip install jinja2; or {_HINT}"
        ) from error


def _of_template(where: str, text: str, checkpoint: Checkpoint) -> PromptSpec:
    """One that the user asked for. Raises UsageError."""
    try:
        return _cut(text, checkpoint)[1]
    except Uncut as error:
        raise UsageError(f"{where} {error}", hint=_HINT) from error


def _vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    """With the texts of the ids that begin and end a text."""
    whole, prompt = checkpoint.tokenizer_json(), checkpoint.spec.prompt
    own, texts = checkpoint.special, tokenizers.Tokenizer.from_str(whole)
    bos, eos = own.bos if prompt.bos_id is None else prompt.bos_id, prompt.end_id if own.eos is None else own.eos
    return Vocabulary(whole, *("" if i is None else texts.id_to_token(i) or "" for i in (bos, eos)))


def _of_names(checkpoint: Checkpoint) -> tuple[PromptSpec, str | None]:
    """The published prompt of a checkpoint without a template, and a note where nothing but its layout says so."""
    if checkpoint.image_text:
        raise CheckpointError("the checkpoint has no chat template, and nothing else tells its prompt", hint=_HINT)
    name, note = _by_name(checkpoint)
    return named(name, checkpoint.spec.prompt), note


def _by_name(checkpoint: Checkpoint) -> tuple[str, str | None]:
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
    """A manifest's prompt, of schema 2 or 1. What belongs to the checkpoint may be left out: how many rows an image
    takes, the ids, how texts beside them are tokenised."""
    base = checkpoint.spec.prompt
    told = _object(path)
    old = not told.keys().isdisjoint(schema1.ONLY)
    known = schema1.FIELDS if old else [field.name for field in fields(PromptSpec)]
    if strange := told.keys() - set(known):
        raise UsageError(f"{path} has unknown fields: {', '.join(sorted(strange))}", hint="known: " + ", ".join(known))
    own = {name: getattr(base, name) for name in ("image_tokens", "bos_id", "stop_ids")}
    try:
        if old:
            whole = schema1.prompt({**own, "end_id": base.end_id, **told}) | {"restarts": base.restarts}
        else:
            own |= {"end_ids": base.end_ids, "restarts": base.restarts, "image_question": None, "views": base.views}
            whole = {**own, **told}
        spec = parse(PromptSpec, whole)
    except ValueError as error:
        raise UsageError(f"{path} {error}", hint=_FIELDS) from error
    if faults := spec.faults() + _faults(spec, base, checkpoint):
        raise UsageError(f"{path}: {'; '.join(faults)}", hint=_FIELDS)
    return spec


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{str(path)!r} is no chat template: {error}", hint=_KNOWN) from error


def _object(path: Path) -> Mapping[str, Any]:
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"no prompt is named {str(path)!r}, and there is no such file", hint=_KNOWN) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no prompt: {error}", hint=_KNOWN) from error
    if not isinstance(told, dict):
        raise UsageError(f"{path} holds no JSON object", hint=_KNOWN)
    return told


def _faults(spec: PromptSpec, base: PromptSpec, checkpoint: Checkpoint) -> list[str]:
    """What would silently mean something else than it says."""
    faults = []
    if spec.image_tokens != base.image_tokens:
        faults.append(f"image_tokens is {spec.image_tokens}, and the projector makes {base.image_tokens}")
    vocab, pieces = checkpoint.spec.decoder.vocab, [piece for found in spec.pieces() for piece in found]
    ids = {"bos_id": [spec.bos_id or 0], "end_ids": spec.end_ids, "stop_ids": spec.stop_ids}
    ids["ids"] = [i for piece in pieces if isinstance(piece, Ids) for i in piece.ids]
    faults += [f"{name} is {found}, of {vocab} tokens" for name, of in ids.items() for found in of if found >= vocab]
    if spec.end_ids and spec.end_ids[0] not in spec.stop_ids:
        faults.append(f"end_ids begin with {spec.end_ids[0]}, which is not one of the stop_ids {list(spec.stop_ids)}")
    if "" in spec.stop_strings:
        faults.append("stop_strings has an empty text")
    special = {token.content for token in _special(checkpoint) if token.content}
    texts = [spec.default_system, *(piece.text for piece in pieces if isinstance(piece, Text))]
    faults += [
        f"the text {text!r} has the special token {token!r}, which is spelled out as text: write its id"
        for text in dict.fromkeys(texts)
        for token in sorted(special)
        if token in text
    ]
    return faults


def _special(checkpoint: Checkpoint) -> list[tokenizers.AddedToken]:
    added = tokenizers.Tokenizer.from_str(checkpoint.tokenizer_json()).get_added_tokens_decoder().values()
    return [token for token in added if token.special]
