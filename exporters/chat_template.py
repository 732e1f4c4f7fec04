"""Chat templates of a checkpoint's own: where they are kept, and whether they render a prompt that is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from edge.errors import CheckpointError
from edge.prompt import MARK
from edge.spec import PromptSpec
from exporters.added_tokens import CONFIG
from exporters.checkpoint import read_optional_json
from exporters.gguf import rendering
from exporters.gguf.names import TEMPLATE
from exporters.gguf.reading import AGAIN, Source
from exporters.gguf.rendering import Failure, Message
from exporters.gguf.template import MEDIA

T = TypeVar("T")
KEY, DEFAULT = "chat_template", "default"
JINJA = "chat_template.jinja"
NAMED = "additional_chat_templates"
PROCESSOR = ("chat_template.json", "processor_config.json")
_BRIEF = "Answer in one word."
_CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": f"{MEDIA}What is this?"},),
    (
        {"role": "user", "content": f"{MEDIA}Who is she?"},
        {"role": "assistant", "content": "A pilot."},
        {"role": "user", "content": "Why do you say so?"},
        {"role": "assistant", "content": "She wears a helmet."},
        {"role": "user", "content": "Which colour?"},
    ),
    ({"role": "system", "content": _BRIEF}, {"role": "user", "content": "Is it day?"}),
)


def files(folder: Path) -> tuple[Path, ...]:
    """What `find` reads beside tokenizer_config.json."""
    single = (folder / name for name in (JINJA, *PROCESSOR))
    return (*filter(Path.is_file, single), *sorted(filter(Path.is_file, (folder / NAMED).glob("*.jinja"))))


def find(folder: Path) -> dict[str, str]:
    """The templates that transformers finds in a checkpoint's folder, for its tokenizer or its processor: where each is
    kept -> its text. Of several by name the default is the one that a chat without tools takes. Raises CheckpointError
    on what is no template."""
    texts = {path: _read(path) for path in files(folder) if path.suffix == ".jinja"}
    named = {DEFAULT if path.name == JINJA else path.stem: (path, text) for path, text in texts.items()}
    found = {path.relative_to(folder).as_posix(): text for path, text in _chosen(named)}
    for file in (CONFIG, *PROCESSOR):
        told = read_optional_json(folder / file)
        if file == PROCESSOR[0] and told and KEY not in told:
            raise CheckpointError(f"{folder / file} holds no {KEY}", hint=f"it has one entry, {KEY!r}; or remove it")
        entries = _entries(told.get(KEY), folder / file)
        found |= _chosen({name: (file if name == DEFAULT else f"{file}: {name}", text) for name, text in entries})
    return found


def of_gguf(file: Source) -> dict[str, str]:
    """The same of a GGUF file's settings."""
    named = {}
    for key in file.head.settings:
        if key == TEMPLATE or key.startswith(f"{TEMPLATE}."):
            if not isinstance(text := file.get(key), str):
                raise CheckpointError(f"{file.path.name} has a damaged {key}", hint=AGAIN)
            named[key.removeprefix(TEMPLATE).removeprefix(".") or DEFAULT] = (key, text)
    return dict(_chosen(named))


def departure(template: str, spec: PromptSpec, bos: str, eos: str) -> str | None:
    """Where the template leaves the prompt of `spec`, with an excerpt of what it renders; None where it does not.

    Contents are given as texts, the picture spelled as `spec` does, and in typed entries. A template counts by what it
    can take; what it does with a system message counts unless it refuses or drops it. `bos` and `eos` are the texts of
    these tokens. Raises ModuleNotFoundError without jinja2.
    """
    taken = [said for said in _said(template, spec.image, bos, eos) if _fault(said) is None]
    if not taken:
        return _fault(_said(template, spec.image, bos, eos)[0])
    for said in taken:
        for conversation, text in zip(_CONVERSATIONS, said, strict=True):
            wanted = rendering.expected(spec, conversation, eos).replace(MEDIA, MARK)
            if isinstance(text, Failure) or (conversation[0]["content"] == _BRIEF and _BRIEF not in text):
                continue
            if apart := rendering.unlike(text.removeprefix(bos), wanted):
                return f"renders {rendering.shortened(text)}; {apart}"
    return None


@lru_cache(maxsize=16)
def _said(template: str, image: str, bos: str, eos: str) -> tuple[list[str | Failure], list[str | Failure]]:
    """Of `_CONVERSATIONS`, with contents as texts and as typed entries."""
    plain = [[{**m, "content": m["content"].replace(MEDIA, image)} for m in c] for c in _CONVERSATIONS]
    typed = [[{**m, "content": list(_typed(m["content"]))} for m in c] for c in _CONVERSATIONS]
    said = rendering.render(template, [*plain, *typed], bos, eos)
    return said[: len(plain)], said[len(plain) :]


def _typed(content: str) -> Iterator[Mapping[str, str]]:
    if MEDIA in content:
        yield {"type": "image"}
    yield {"type": "text", "text": content.removeprefix(MEDIA)}


def _fault(said: Sequence[str | Failure]) -> str | None:
    """Why this is no chat: it fails, loses a question, or shows the entries themselves."""
    for conversation, text in zip(_CONVERSATIONS, said, strict=True):
        if conversation[0]["role"] == "system":
            continue
        if isinstance(text, Failure):
            return text.reason
        asked = [m["content"].removeprefix(MEDIA) for m in conversation if m["role"] == "user"]
        if lost := [question for question in asked if question not in text]:
            return f"leaves out {lost[0]!r}: renders {rendering.shortened(text)}"
        if "'type'" in text or '"type"' in text:
            return f"writes the entries of a content: renders {rendering.shortened(text)}"
    return None


def _chosen(named: Mapping[str, tuple[T, str]]) -> list[tuple[T, str]]:
    """Of those that say something the default, where there is one: others are for tools and documents, which nobody is
    asked with here."""
    told = {name: entry for name, entry in named.items() if entry[1].strip()}
    return [told[DEFAULT]] if DEFAULT in told else list(told.values())


def _entries(told: Any, where: Path) -> Iterator[tuple[str, str]]:
    """By name: one text, a list of named ones, or a mapping."""
    if told is None:
        return
    try:
        pairs = (
            [(DEFAULT, told)]
            if isinstance(told, str)
            else told.items()
            if isinstance(told, dict)
            else [(entry["name"], entry["template"]) for entry in told]
        )
        for name, text in pairs:
            if not isinstance(name, str) or not isinstance(text, str):
                raise TypeError(f"{name!r} is {text!r}")
            yield name, text
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{where} has a {KEY} that is no template: {error!r}", hint="a text, or a list of name and template"
        ) from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", hint="download the checkpoint again") from error
