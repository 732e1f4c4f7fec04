"""Chat templates of a checkpoint's own: where they are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from edge.errors import CheckpointError
from exporters.gguf.names import TEMPLATE
from exporters.gguf.reading import AGAIN, Source
from exporters.sources.added_tokens import CONFIG
from exporters.sources.checkpoint import read_optional_json

T = TypeVar("T")
KEY, DEFAULT = "chat_template", "default"
JINJA = "chat_template.jinja"
NAMED = "additional_chat_templates"
PROCESSOR = ("chat_template.json", "processor_config.json")


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
