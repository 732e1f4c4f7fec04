"""The tokenizer of a checkpoint's folder, SentencePiece's or its own tokenizer.json: what a bundle holds of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, normalizers

from edge.errors import BundleError, CheckpointError
from edge.inputs import tokenizer_checks
from edge.inputs.tokenizer import Tokenizer
from exporters.sources import added_tokens
from exporters.sources.added_tokens import CONFIG, FLAGS, JSON
from exporters.sources.sentencepiece import (
    LLAMA,
    PIECES,
    SPACE,
    SentencePiece,
    SpecialIds,
    class_name,
    first_prefix,
    is_legacy,
)

# How the space before each stretch of a text was saved in the years before `legacy`.
_LEGACY = json.loads(normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]).__getstate__())


@dataclass(frozen=True)
class Ends:
    """The ids that a tokenizer puts before a text and after it."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def convert(checkpoint: Path, rows: int | None = None) -> str:
    """The text of a tokenizer.json that computes what the tokenizer of a checkpoint's folder does. `tokenizer.model`
    comes first where a folder has both files. Added tokens from the id `rows` on, for which the embedding table has no
    row, are left out: they are text. Raises CheckpointError when there is no tokenizer, or one of a kind that is not
    read."""
    if pieces := SentencePiece.open(checkpoint):
        return pieces.to_json(rows)
    inner = _from_json(checkpoint)
    beyond = _beyond(inner, rows)
    return _without(inner, beyond, checkpoint) if beyond else str(inner.to_str())


def with_special(text: str, added: tuple[str, ...]) -> str:
    """A tokenizer.json with these special tokens behind its own; those that it has stay where they are."""
    inner = tokenizers.Tokenizer.from_str(text)
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    return str(inner.to_str())


def special_ids(checkpoint: Path) -> SpecialIds:
    """The ids that begin a text, end one, and stand for the unknown; None for what the tokenizer lacks."""
    roles = added_tokens.read(checkpoint).roles
    pieces = SentencePiece.open(checkpoint)
    vocabulary = pieces.vocabulary() if pieces else _from_json(checkpoint).get_vocab()
    own = pieces.special_ids() if pieces else SpecialIds(None, None, None)
    named = (roles.get(f"{kind}_token") for kind in ("bos", "eos", "unk"))
    return SpecialIds(
        *(
            vocabulary.get(token.content) if token else default
            for token, default in zip(named, (own.bos, own.eos, own.unk), strict=True)
        )
    )


def ends(checkpoint: Path) -> Ends:
    """What the tokenizer itself puts around a text.

    A tokenizer.json says so by its post-processor, as transformers takes it: `add_bos_token` counts only without one.
    There, LlamaTokenizer's documented defaults are true for the beginning and false for the end; they hold for a bare
    SentencePiece model too, which is that class's. Other classes put nothing.
    """
    if (checkpoint / JSON).is_file():
        return _around(_parsed(checkpoint / JSON))
    config, ids = added_tokens.read_table(checkpoint / CONFIG), special_ids(checkpoint)
    begins, finishes = (added_tokens.flag(config, f"add_{kind}_token") for kind in ("bos", "eos"))
    if begins is None:
        begins = class_name(checkpoint) in (LLAMA, None)
    return Ends(
        (ids.bos,) if begins and ids.bos is not None else (), (ids.eos,) if finishes and ids.eos is not None else ()
    )


def bos_id(checkpoint: Path, rows: int) -> int | None:
    """What is put once, at the very start. Raises CheckpointError on what a prompt cannot begin with."""
    before = ends(checkpoint).before
    if len(before) > 1:
        raise CheckpointError(
            f"the tokenizer begins a text with {len(before)} tokens, {list(before)}; one is supported",
            hint=f"has the post-processor of {JSON} been doubled?",
        )
    if before and before[0] >= rows:
        raise CheckpointError(
            f"the tokenizer begins a text with the token {before[0]}, and the embedding table has {rows} rows",
            hint=f"is it this model's tokenizer? Compare bos_token in {CONFIG}",
        )
    return before[0] if before else None


def notes(checkpoint: Path, rows: int) -> tuple[str, ...]:
    """What a bundle leaves out of the tokenizer, or does otherwise than a file says, one sentence each. Raises
    CheckpointError where the embedding table has no row for a token that cannot be left out."""
    pieces = SentencePiece.open(checkpoint)
    beyond = pieces.beyond(rows) if pieces else _beyond(_from_json(checkpoint), rows)
    found = []
    if beyond:
        found.append(
            f"the embedding table has {rows} rows, and none for {', '.join(map(repr, beyond))}: "
            "the bundle's tokenizer spells that out as text"
        )
    around, config = ends(checkpoint), added_tokens.read_table(checkpoint / CONFIG)
    for key, ids in (("add_bos_token", around.before), ("add_eos_token", around.after)):
        told = added_tokens.flag(config, key)
        if told is not None and told != bool(ids) and (checkpoint / JSON).is_file():
            does = f"puts the token {ids[0]}" if ids else "puts none"
            found.append(f"{key} is {str(told).lower()} in {CONFIG}, but {JSON} {does}, and is followed")
    if around.after:
        found.append(f"the tokenizer ends a text with the token {around.after[0]}: a prompt leaves it out")
    return tuple(found)


def _around(inner: tokenizers.Tokenizer) -> Ends:
    inner.no_truncation()
    inner.no_padding()
    made = inner.encode("a")
    own = [place for place, sequence in enumerate(made.sequence_ids) if sequence is not None]
    if not own:
        raise CheckpointError(f"{JSON} makes nothing of the text 'a'", hint="is it this model's tokenizer?")
    return Ends(tuple(made.ids[: own[0]]), tuple(made.ids[own[-1] + 1 :]))


def _from_json(checkpoint: Path) -> tokenizers.Tokenizer:
    """With what the other files add to it."""
    inner = _prefixed(_open(checkpoint), checkpoint)
    known = inner.get_added_tokens_decoder()
    for i, token in sorted(added_tokens.read(checkpoint).placed(inner.get_vocab()).items()):
        present = inner.id_to_token(i)
        if present is not None and present != token.content:
            raise CheckpointError(
                f"the id {i} is {present!r} in {JSON}, and {token.content!r} elsewhere",
                hint=f"mend {CONFIG} or {added_tokens.ADDED}, or download them again",
            )
        if i in known and _flags(known[i]) == _flags(token):
            continue
        inner.add_tokens([token])
        if (found := inner.token_to_id(token.content)) != i:
            raise CheckpointError(
                f"the added token {token.content!r} has the id {i}, but is number {found}",
                hint=f"number the added tokens from {inner.get_vocab_size() - 1} on, without gaps",
            )
    return inner


def _prefixed(inner: tokenizers.Tokenizer, checkpoint: Path) -> tokenizers.Tokenizer:
    """With the space before a text where the class that a folder names puts it: LlamaTokenizer goes by `legacy`, not by
    what the file was saved with."""
    if class_name(checkpoint) != LLAMA:
        return inner
    data: dict[str, Any] = json.loads(inner.to_str())
    before = data["pre_tokenizer"]
    if not is_legacy(checkpoint):
        if before is None and data["normalizer"] == _LEGACY:
            inner.normalizer = normalizers.Replace(" ", SPACE)
            inner.pre_tokenizer = first_prefix()
        return inner
    steps = (before or {}).get("pretokenizers", [before])
    if steps[0] is None or steps[0].get("prepend_scheme") != "first":
        return inner
    steps[0]["prepend_scheme"] = "always"
    return tokenizers.Tokenizer.from_str(json.dumps(data))


def _flags(token: AddedToken) -> tuple[bool, ...]:
    return tuple(getattr(token, flag) for flag in FLAGS)


def _open(checkpoint: Path) -> tokenizers.Tokenizer:
    """As it is: read once by the reader that will open it, which refuses what it could not decode."""
    path = checkpoint / JSON
    if not path.is_file():
        raise CheckpointError(
            f"{str(checkpoint)!r} has no {PIECES} and no {JSON}", hint="copy the tokenizer's files beside config.json"
        )
    try:
        Tokenizer.open(path)
    except BundleError as error:
        raise CheckpointError(error.message, hint=f"put a {PIECES} or another {JSON} in its place") from error
    return _parsed(path)


def _parsed(path: Path) -> tokenizers.Tokenizer:
    try:
        tokenizer_checks.check(path)
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise CheckpointError(f"{path} is not a {JSON}: {error}", hint="download it again") from error


def _beyond(inner: tokenizers.Tokenizer, rows: int | None) -> list[str]:
    """Added tokens with ids from `rows` on. Raises CheckpointError on other tokens with such an id."""
    if rows is None:
        return []
    beyond = {text: i for text, i in inner.get_vocab().items() if i >= rows}
    added = {token.content for token in inner.get_added_tokens_decoder().values()}
    if own := [text for text in beyond if text not in added]:
        last = max(own, key=lambda text: beyond[text])
        raise CheckpointError(
            f"{JSON} has the token {last!r} with the id {beyond[last]}, and the embedding table has {rows} rows",
            hint="copy the tokenizer's files that belong to this model beside config.json",
        )
    return sorted(beyond, key=lambda text: beyond[text])


def _without(inner: tokenizers.Tokenizer, texts: list[str], checkpoint: Path) -> str:
    """The tokenizer.json without added tokens. The library has no call for that."""
    data: dict[str, Any] = json.loads(inner.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in texts]
    vocabulary = data["model"]["vocab"]
    if isinstance(vocabulary, Mapping):
        data["model"]["vocab"] = {text: i for text, i in vocabulary.items() if text not in texts}
    else:  # Unigram's, in the order of the ids: what is left out is its end
        data["model"]["vocab"] = [entry for entry in vocabulary if entry[0] not in texts]
    text = json.dumps(data, ensure_ascii=False)
    try:
        tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exceptions
        raise CheckpointError(
            f"{checkpoint / JSON} needs the tokens {texts}, for which the embedding table has no rows: {error}",
            hint="copy the tokenizer's files that belong to this model beside config.json",
        ) from error
    return text
