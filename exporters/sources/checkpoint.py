"""A checkpoint: what a user trained or downloaded, understood by one of the dialects in `exporters/checkpoints/`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from edge import plugins
from edge.errors import CheckpointError
from edge.spec import VLMSpec
from exporters.models.component import Component
from exporters.models.encoder import fused
from exporters.sources import hub, tokenizer
from exporters.sources.sentencepiece import SentencePiece, SpecialIds
from exporters.sources.weights import Weights, content_hash

DIALECTS = "exporters.checkpoints"

NO_IDS = SpecialIds(None, None, None)


@dataclass(frozen=True)
class Checkpoint:
    name: str
    license: str
    spec: VLMSpec
    components: Mapping[str, Component]  # by role: vision, projector, decoder
    weights: Weights
    folder: Path
    sentencepiece: SentencePiece | None  # None: a tokenizer.json in the folder
    templates: Mapping[str, str]  # chat templates of its own: where each is kept -> its text
    origins: Mapping[str, Any]  # what may name the conversation that it learned: the setting -> its value
    published: bool  # whether all models of its family learned `spec.prompt`
    small: tuple[Path, ...] = ()  # what else than the weights it is read from
    prompt_given: str | None = None  # by the user instead: the name of a published one, or "file"
    special: SpecialIds = NO_IDS  # of its tokenizer: what a template calls bos_token, eos_token
    notes: tuple[str, ...] = ()  # what an export does otherwise than the files say, for the user

    @cached_property
    def sha256(self) -> str:
        """Of the files' bytes; where they lie does not matter. Reads them all, once."""
        return content_hash((*self.small, *self.weights.files))

    @property
    def weights_bytes(self) -> int:
        """As stored."""
        return sum(math.prod(self.weights.shape(name)) * self.weights.dtype(name).itemsize for name in self.weights)

    @cached_property
    def encoder(self) -> Component:
        """Vision encoder and projector as one, which becomes a part."""
        return fused(self.components["vision"], self.components["projector"])

    def tokenizer_json(self) -> str:
        """Of the tokens that the embedding table has a row for."""
        return self._tokenizer_json

    @cached_property
    def _tokenizer_json(self) -> str:
        """Converting a SentencePiece model takes seconds."""
        rows = self.spec.decoder.vocab
        return self.sentencepiece.to_json(rows) if self.sentencepiece else tokenizer.convert(self.folder, rows)


def open_checkpoint(
    source: str, *, vision_tower: Path | None = None, mmproj: Path | None = None, context: int | None = None
) -> Checkpoint:
    """A folder, a name on the hub, or a file. Names and shapes of all weights are compared; none is read but a norm, by
    which deltas are told from weights.

    `vision_tower` is a folder with the tower's weights, its config, or both; `mmproj` the file with the vision part
    that belongs to a decoder's; `context` shortens the decoder's.
    """
    path, name = Path(source), None
    suffix = path.suffix.lower()
    if (claims := _claims("SUFFIXES", suffix)) and not path.is_dir():
        module = _only([plugins.load(DIALECTS, claim) for claim in claims], f"files that end in {suffix!r}")
    else:
        if not path.exists():
            if not hub.is_name(source):
                raise CheckpointError(
                    f"no such folder: {source!r}", hint="a checkpoint's folder, a GGUF file, or a hub id: owner/name"
                )
            path, name = hub.fetch(source), source.partition("/")[2]
        module = _folder_dialect(path)
    found: Checkpoint = module.read(path, vision_tower=vision_tower, mmproj=mmproj, context=context)
    return replace(found, name=name) if name else found


def _folder_dialect(folder: Path) -> ModuleType:
    """The one dialect that recognises the folder's config.json, of all that claim its model_type."""
    file, config = folder / "config.json", read_json(folder / "config.json")
    kind = config.get("model_type")
    claims = _claims("MODEL_TYPES", kind)
    if not claims:
        known = {name for dialect in plugins.names(DIALECTS) for name in _fact(dialect, "MODEL_TYPES")}
        raise CheckpointError(
            f"{file} describes a {kind!r}, which no dialect reads", hint="known: " + ", ".join(sorted(known))
        )
    modules = [plugins.load(DIALECTS, claim) for claim in claims]
    found = [module for module in modules if module.recognise(config)]
    if not found:
        marks = "; ".join(f"{claim} by {' or '.join(_fact(claim, 'MARKS'))}" for claim in claims)
        raise CheckpointError(
            f"{file} describes a {kind!r} in a layout that no dialect recognises",
            hint=f"is config.json complete? A {kind!r} is recognised as {marks}",
        )
    return _only(found, str(file))


def _claims(fact: str, entry: Any) -> list[str]:
    """The dialects that list `entry` under a fact of theirs."""
    return [name for name in plugins.names(DIALECTS) if entry in _fact(name, fact)]


def _fact(dialect: str, fact: str) -> tuple[str, ...]:
    listed: tuple[str, ...] = plugins.facts(DIALECTS, dialect).get(fact, ())
    return listed


def _only(found: list[ModuleType], what: str) -> ModuleType:
    if len(found) > 1:
        names = ", ".join(module.__name__.rpartition(".")[2] for module in found)
        raise CheckpointError(
            f"several dialects read {what}: {names}", hint="report this: their `recognise` must tell them apart"
        )
    return found[0]


def read_json(path: Path) -> dict[str, Any]:
    """An object in a file of a checkpoint. Raises CheckpointError where it is missing or something else."""
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{str(path.parent)!r} has no {path.name}", hint="is it a checkpoint?") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}", hint="download the checkpoint again") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}", hint="may you read it?") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no JSON object", hint="download the checkpoint again")
    return data


def read_optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def check_numbers(config: Any, signed: tuple[str, ...] = ()) -> None:
    """A dataclass filled from a JSON file holds what its annotations say, sizes above zero. Raises ValueError."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type == "bool":
            fits = isinstance(value, bool)
        elif field.type == "int":
            fits = type(value) is int and (value > 0 or field.name in signed)
        else:
            fits = field.type != "float" or (type(value) in (int, float) and 0 < value < math.inf)
        if not fits:
            raise ValueError(f"{field.name} is {value!r}")


def check(components: Iterable[Component], weights: Weights, ignored: re.Pattern[str]) -> None:
    """Every weight that a component needs is there in its shape, and no other but what matches `ignored`."""
    used: set[str] = set()
    for component in components:
        component.check(weights)
        used.update(name for source in component.keys.values() for name in source.names)
    if surplus := [name for name in weights if name not in used and not ignored.fullmatch(name)]:
        raise CheckpointError(
            "the checkpoint has weights that the model it describes does not use:\n  " + "\n  ".join(surplus),
            hint="does its description belong to it? Leaving them out would make another model",
        )


def license_of(folder: Path, config: Mapping[str, Any]) -> str:
    """As the model card's front matter says, else config.json, else the first line of LICENSE, else "unknown"."""
    card = _text(folder / "README.md")
    front = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    if front and (named := re.search(r"^license:[ \t]*['\"]?([\w.+-]+)", front[1], re.MULTILINE)):
        return named[1]
    if isinstance(config.get("license"), str):
        return str(config["license"])
    first = _text(folder / "LICENSE").strip().partition("\n")[0].strip()
    return first or "unknown"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
