"""The tokens that a checkpoint's files add to its tokenizer, read from all of them, as transformers does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from edge.errors import CheckpointError

JSON = "tokenizer.json"
CONFIG = "tokenizer_config.json"
ADDED = "added_tokens.json"
SPECIAL = "special_tokens_map.json"
# The order in which transformers numbers those that no vocabulary holds.
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTS = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class Listed:
    """What the files list: tokens by id, and tokens that have a role (`bos_token`), whose ids the vocabulary knows."""

    tokens: Mapping[int, AddedToken]
    roles: Mapping[str, AddedToken]

    def placed(self, vocabulary: Mapping[str, int]) -> dict[int, AddedToken]:
        """All of them by id. A token may stand in the place of another text of `vocabulary`; one with a role that
        nothing numbers comes after all others. Raises CheckpointError on one whose text has another id there."""
        found = dict(self.tokens)
        for i, token in self.tokens.items():
            known = vocabulary.get(token.content, i)
            if known != i and known not in found:
                raise CheckpointError(
                    f"the added token {token.content!r} has the id {i}, but the vocabulary has it as {known}",
                    hint=f"number it {known} in {CONFIG}, {ADDED} and {JSON}",
                )
        listed = {token.content for token in found.values()}
        for token in self.roles.values():
            if token.content in listed:
                continue
            known = vocabulary.get(token.content, -1)
            if known < 0 or known in found:  # in none of them, or in a place that another token took
                known = max(len(vocabulary), *(i + 1 for i in (*vocabulary.values(), *found)))
            found[known] = token
            listed.add(token.content)
        return found


def read(folder: Path) -> Listed:
    """Raises CheckpointError where a file is damaged, or files contradict each other."""
    config, special = read_table(folder / CONFIG), read_table(folder / SPECIAL)
    # transformers reads the older file only where the newer one lists no tokens.
    told = {**special, **config} if "added_tokens_decoder" in config else {**config, **special}
    roles = dict(_roles(told, folder))
    named = {token.content for role, token in roles.items() if role.partition(".")[0] not in LISTS}
    found: dict[int, tuple[str, AddedToken]] = {}
    for source, i, token in _entries(folder, config, {token.content for token in roles.values()}):
        place, known = found.get(i, (source, token))
        if known.content != token.content:
            raise CheckpointError(
                f"the id {i} is {known.content!r} in {place}, and {token.content!r} in {source}", hint=_mend(folder)
            )
        if token.content in named:
            token.special = True
        found[i] = source, token
    ids: dict[str, int] = {}
    for i, (source, token) in found.items():
        if (other := ids.setdefault(token.content, i)) != i:
            raise CheckpointError(
                f"the added token {token.content!r} has the id {other} in {found[other][0]}, and {i} in {source}",
                hint=_mend(folder),
            )
    return Listed({i: token for i, (_, token) in found.items()}, roles)


def read_table(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no such file. Raises CheckpointError on anything else."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}", hint="download it again") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}", hint="may you read it?") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no table", hint="download it again")
    return data


def flag(config: Mapping[str, Any], key: str) -> bool | None:
    """A setting of tokenizer_config.json that is true, false, or absent. Raises CheckpointError on another value."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{CONFIG} has {key} {value!r}", hint="true or false")
    return value


def _entries(folder: Path, config: Mapping[str, Any], special: set[str]) -> Iterator[tuple[str, int, AddedToken]]:
    """File, id and token, the file that has the last word on a token's flags last."""
    for content, i in read_table(folder / ADDED).items():
        entry = {"content": content, "special": content in special}
        yield ADDED, _number(i, ADDED, folder), _token(entry, ADDED, folder)
    for name, entries in (
        (JSON, _listed_in_json(folder)),
        (CONFIG, config.get("added_tokens_decoder") or {}),
    ):
        if not isinstance(entries, dict):
            raise _damaged(name, entries, folder)
        for i, entry in entries.items():
            yield name, _number(i, name, folder), _token(entry, name, folder)


def _listed_in_json(folder: Path) -> dict[Any, Any]:
    entries = read_table(folder / JSON).get("added_tokens") or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _damaged(JSON, entries, folder)
    found: dict[Any, Any] = {}
    for entry in entries:
        if entry.get("id") in found:
            raise _damaged(JSON, entry, folder)
        found[entry.get("id")] = entry
    return found


def _roles(told: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, AddedToken]]:
    """Tokens that are named for what they do, those first that transformers knows by name."""
    others = [key for key in told if key.endswith("_token") and key not in ROLES]
    for key in (*ROLES, *others):
        value = told.get(key)
        if isinstance(value, str | dict) and value:
            yield key, _special(value, folder)
        elif value is not None and key in ROLES:
            raise _damaged(key, value, folder)
    for key in LISTS:
        values = told.get(key) or []
        if not isinstance(values, list | dict):
            raise _damaged(key, values, folder)
        entries = values if isinstance(values, dict) else {f"{key}.{i}": value for i, value in enumerate(values)}
        for role, value in entries.items():
            yield role, _special(value, folder)


def _special(value: Any, folder: Path) -> AddedToken:
    entry = {"content": value, "normalized": False} if isinstance(value, str) else value
    return _token({**entry, "special": True} if isinstance(entry, dict) else entry, CONFIG, folder)


def _token(entry: Any, where: str, folder: Path) -> AddedToken:
    flags = {key: entry[key] for key in FLAGS if key in entry} if isinstance(entry, dict) else {}
    content = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(content, str) or not content or not all(isinstance(value, bool) for value in flags.values()):
        raise _damaged(where, entry, folder)
    try:
        return AddedToken(content, **flags)
    except UnicodeError as error:  # half of a surrogate pair, which JSON can spell
        raise _damaged(where, entry, folder) from error


def _number(value: Any, where: str, folder: Path) -> int:
    """JSON's keys are texts."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise _damaged(where, value, folder)
    return int(value)


def _damaged(where: str, value: Any, folder: Path) -> CheckpointError:
    return CheckpointError(
        f"the added tokens of {str(folder)!r} are not understood: {where} has {str(value)[:80]!r}", hint=_mend(folder)
    )


def _mend(folder: Path) -> str:
    names = [name for name in (CONFIG, ADDED, JSON, SPECIAL) if (folder / name).is_file()]
    return f"mend {' and '.join(names)}, or download them again"
