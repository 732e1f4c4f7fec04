"""A checkpoint: what a user trained or downloaded, understood by one of the dialects in `exporters/checkpoints/`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from edge.errors import CheckpointError, UsageError
from edge.spec import VLMSpec
from exporters.models.component import Component
from exporters.models.encoder import fused
from exporters.models.sizes import MOST_LAYERS, MOST_SIZE
from exporters.sources import adapters, dialects, hub, lora_config, tokenizer, tuned_tokenizer
from exporters.sources.lora import Adapter
from exporters.sources.sentencepiece import SentencePiece, SpecialIds
from exporters.sources.template_rendered import MARK
from exporters.sources.weights import LAYOUTS, Weights, content_hash

_MOST_TEXT, _MOST_LINE = 1 << 17, 1000  # bytes of a model card or licence that are read, letters of a licence's name
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
    added: tuple[str, ...] = ()  # special tokens that its code puts behind those of the tokenizer's files
    image_mark: str = MARK  # an image in what its template writes
    image_text: str = ""  # what its processor writes for that, in which it stands for the rows

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
        text = self.sentencepiece.to_json(rows) if self.sentencepiece else tokenizer.convert(self.folder, rows)
        return tokenizer.with_special(text, self.added) if self.added else text


def open_checkpoint(
    source: str,
    *,
    vision_tower: Path | None = None,
    mmproj: Path | None = None,
    context: int | None = None,
    base: str | None = None,
) -> Checkpoint:
    """A folder, a name on the hub, or a file. Names and shapes of all weights are compared; none is read but a norm, by
    which deltas are told from weights.

    `vision_tower` is a folder with the tower's weights, its config, or both; `mmproj` the file with the vision part
    that belongs to a decoder's; `context` shortens the decoder's. With a `base`, a folder or a name on the hub,
    `source` is what a fine-tune changes of it: a LoRA folder, or a projector.
    """
    options = {"vision_tower": vision_tower, "mmproj": mmproj, "context": context}
    if base is not None:
        return _tuned(source, base, options)
    given = Path(source)
    if not given.is_dir() and (module := dialects.of_file(given.suffix.lower())):
        return cast("Checkpoint", module.read(given, **options))
    path, name = _folder(source, hub.fetch)
    adapters.refuse(path)  # first: one seldom has a config.json, and the base is what is missing
    return _read(path, name, None, options)


def _read(folder: Path, name: str | None, adapter: Adapter | None, options: Mapping[str, Any]) -> Checkpoint:
    """By the one dialect that recognises the model's config.json."""
    file = (adapter.folder if adapter and adapter.config else folder) / "config.json"
    module = dialects.of_folder(file, config_of(folder, adapter))
    found: Checkpoint = module.read(folder, adapter=adapter, **options)
    return replace(found, name=name) if name else found


def _folder(source: str, fetch: Callable[[str], Path]) -> tuple[Path, str | None]:
    """Where it lies, and its name on the hub if it is from there."""
    if (path := Path(source)).exists():
        return path, None
    if not hub.is_name(source):
        raise CheckpointError(
            f"no such folder: {source!r}", hint="a checkpoint's folder, a GGUF file, or a hub id: owner/name"
        )
    return fetch(source), source.partition("/")[2]


def _tuned(source: str, base: str, options: Mapping[str, Any]) -> Checkpoint:
    """A base with what a fine-tune changes of it."""
    folder, name = _folder(source, hub.fetch_adapter)
    if not adapters.present(folder) or any((folder / layout).is_file() for layout in LAYOUTS):
        raise UsageError(f"--base goes with a LoRA folder, which {source!r} is not", hint=f"edge export {source}")
    under, known = _folder(base, hub.fetch)
    if not under.is_dir():
        raise UsageError(f"--base {base} is not a folder", hint="--base CKPT: a folder with a checkpoint, or a hub id")
    described = (lora_config.NAME, "config.json")
    adapter = Adapter.open(folder, *(read_optional_json(folder / file) for file in described))
    adapter.compare(read_json(under / "config.json"), known or under.resolve().name)
    found = _read(under, name or folder.resolve().name, adapter, options)
    adapter.require_used(found.components, found.weights)
    tuned_tokenizer.require_same(folder, found.tokenizer_json, found.spec.decoder.vocab)
    own = license_of(folder, {})
    return replace(
        found,
        notes=(*found.notes, *tuned_tokenizer.notes(folder, found.templates.values())),
        license=found.license if own in ("unknown", found.license) else f"{own} (base: {found.license})",
        small=(*found.small, *filter(Path.is_file, (folder / file for file in described))),
    )


def config_of(folder: Path, adapter: Adapter | None) -> Mapping[str, Any]:
    """config.json of the model: a fine-tune's own, else that of the folder."""
    return (adapter and adapter.config) or read_json(folder / "config.json")


def weights_of(folder: Path, adapter: Adapter | None) -> Weights:
    """Of the folder, with what the adapter changes. Raises CheckpointError as `Weights.open` and `Adapter.onto`."""
    weights = Weights.open(folder)
    return adapter.onto(weights) if adapter else weights


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
    """A dataclass filled from a JSON file holds what its annotations say, sizes above zero and of a model that there
    can be. Raises ValueError."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type == "bool":
            fits = isinstance(value, bool)
        elif field.type == "int":
            most = MOST_LAYERS if field.name == "layers" else MOST_SIZE
            fits = type(value) is int and (0 < value <= most or field.name in signed)
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
    for line in _front_matter(card):
        if named := re.match(r"license:[ \t]*['\"]?([\w.+-]{1,100})", line):
            return named[1]
    if isinstance(config.get("license"), str):
        return str(config["license"])[:_MOST_LINE]
    first = _text(folder / "LICENSE").strip().partition("\n")[0].strip()
    return first[:_MOST_LINE] or "unknown"


def _front_matter(card: str) -> list[str]:
    """The lines between the first two that begin with dashes; none where the first line does not."""
    first, *lines = card.split("\n")
    ends = (number for number, line in enumerate(lines) if line.startswith("---"))
    return lines[: next(ends, 0)] if first.rstrip() == "---" else []


def _text(path: Path) -> str:
    """The first of it: what is looked for stands there."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(_MOST_TEXT).decode("utf-8", "replace")
