"""The tokenizer of a checkpoint, SentencePiece's or its own tokenizer.json, as the tokenizer.json of a bundle."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from sentencepiece import sentencepiece_model_pb2 as model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers

from edge.errors import BundleError, CheckpointError
from edge.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
BPE = 2
SPACE = "▁"
PIECES = "tokenizer.model"
JSON = "tokenizer.json"
CONFIG = "tokenizer_config.json"
ADDED = "added_tokens.json"


@dataclass(frozen=True)
class SpecialIds:
    bos: int | None
    eos: int | None
    unk: int | None


def convert(checkpoint: Path) -> str:
    """The text of a tokenizer.json that computes what the checkpoint's tokenizer does, special tokens left to the
    prompt. `tokenizer.model` comes first where a folder has both files.

    Two cases differ from SentencePiece: a text that is nothing but a user-defined piece gets no dummy prefix, and
    where a model normalises with a character map, that is the tokenizers library's reading of it (Hangul jamo differ).
    Raises CheckpointError when there is no tokenizer, or one of a kind that is not read.
    """
    if (checkpoint / PIECES).is_file():
        tokenizer = _from_pieces(model(checkpoint))
        _add(tokenizer, checkpoint)
    elif (checkpoint / JSON).is_file():
        tokenizer = _from_json(checkpoint)
    else:
        raise CheckpointError(
            f"{str(checkpoint)!r} has no {PIECES} and no {JSON}", hint="copy the tokenizer's files beside config.json"
        )
    return str(tokenizer.to_str())


def special_ids(checkpoint: Path) -> SpecialIds:
    """The ids that begin a text, end one, and stand for the unknown; None for what the tokenizer lacks."""
    if (checkpoint / PIECES).is_file():
        proto = model(checkpoint)
        ids = {piece.piece: i for i, piece in enumerate(proto.pieces) if piece.type in (CONTROL, UNKNOWN)}
        spec = proto.trainer_spec
        return SpecialIds(*(ids.get(piece) for piece in (spec.bos_piece, spec.eos_piece, spec.unk_piece)))
    vocab = _from_json(checkpoint).get_vocab()
    config = _read(checkpoint / CONFIG)
    tokens = [config.get(key) for key in ("bos_token", "eos_token", "unk_token")]
    return SpecialIds(*(vocab.get(str(t["content"] if isinstance(t, dict) else t)) for t in tokens))


def model(checkpoint: Path) -> Any:
    """Its SentencePiece model, of a kind that is read. Raises CheckpointError on any other."""
    path = checkpoint / PIECES
    proto = model_pb2.ModelProto()  # type: ignore[attr-defined]  # protobuf makes the class when it is imported
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise CheckpointError(f"{path} is not a SentencePiece model: {error}", hint="download it again") from error
    trainer = proto.trainer_spec
    unread = {
        "it holds no pieces": not proto.pieces,
        "it is no BPE model": trainer.model_type != BPE,
        "it marks a word at its end": trainer.treat_whitespace_as_suffix,
        "it has unused pieces": any(piece.type == UNUSED for piece in proto.pieces),
    }
    for reason, applies in unread.items():
        if applies:
            raise CheckpointError(f"{path} is not read: {reason}", hint="put a tokenizer.json in its place")
    return proto


def _from_pieces(proto: Any) -> tokenizers.Tokenizer:
    trainer = proto.trainer_spec
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece.piece: i for i, piece in enumerate(proto.pieces)},
            merges=_merges(proto),
            unk_token=trainer.unk_piece,
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )
    )
    # A piece with a space in it is never found: SentencePiece looks for it where spaces are marked already.
    own = [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED and " " not in piece.piece]
    tokenizer.normalizer = normalizers.Sequence(list(_normalizers(proto.normalizer_spec, own)))
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(
        [AddedToken(p.piece, normalized=False, special=True) for p in proto.pieces if p.type in (CONTROL, UNKNOWN)]
    )
    tokenizer.add_tokens([AddedToken(piece, normalized=True, special=False) for piece in own])
    return tokenizer


def _merges(proto: Any) -> list[tuple[str, str]]:
    """Every way to put a piece together from two, the best piece first. SentencePiece keeps only the pieces and
    their scores, and joins whatever neighbours make the piece of the highest score."""
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL}
    ranked = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                ranked.append((-score, -cut, left, right))
    return [(left, right) for _, _, left, right in sorted(ranked)]


def _normalizers(spec: Any, user_defined: list[str]) -> Iterator[Any]:
    if spec.precompiled_charsmap:
        yield normalizers.Precompiled(spec.precompiled_charsmap)
    if spec.remove_extra_whitespaces:
        yield normalizers.Replace(Regex(r"\A +"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")
    space = SPACE if spec.escape_whitespaces else " "
    if spec.add_dummy_prefix:
        # A user-defined piece is looked for in the normalised text, and is itself normalised for that: unprefixed.
        alone = "|".join(re.escape(piece) for piece in user_defined)
        yield normalizers.Replace(Regex(rf"\A(?!(?:{alone})\z)"), space) if alone else normalizers.Prepend(space)
    if spec.escape_whitespaces:
        yield normalizers.Replace(" ", SPACE)
    if spec.remove_extra_whitespaces:
        yield normalizers.Replace(Regex(rf"{space}+\z"), "")


def _add(tokenizer: tokenizers.Tokenizer, checkpoint: Path) -> None:
    """The tokens that were added beside the SentencePiece model, under their ids."""
    added = added_tokens(checkpoint)
    size = tokenizer.get_vocab_size()
    for i in sorted(i for i in added if i >= size):
        tokenizer.add_tokens([added[i]])
        if (found := tokenizer.token_to_id(added[i].content)) != i:
            raise CheckpointError(
                f"the added token {added[i].content!r} has the id {i} in {str(checkpoint)!r}, but is number {found}",
                hint=f"number the added tokens from {size} on, without gaps",
            )


def added_tokens(checkpoint: Path) -> dict[int, AddedToken]:
    """The tokens beside the tokenizer's own, by id."""
    listed, plain = _read(checkpoint / CONFIG).get("added_tokens_decoder", {}), _read(checkpoint / ADDED)
    try:
        tokens = {int(i): AddedToken(content, normalized=False, special=True) for content, i in plain.items()}
        return tokens | {int(i): AddedToken(**_flags(entry)) for i, entry in listed.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the added tokens of {str(checkpoint)!r} are not understood: {error}",
            hint=f"mend {CONFIG} and {ADDED}, or download them again",
        ) from error


def _flags(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: entry[k] for k in ("content", "single_word", "lstrip", "rstrip", "normalized", "special") if k in entry}


def _from_json(checkpoint: Path) -> tokenizers.Tokenizer:
    """As it is: read once by the reader that will open it, which refuses what it could not decode."""
    path = checkpoint / JSON
    try:
        Tokenizer.open(path)
    except BundleError as error:
        raise CheckpointError(error.message, hint=f"put a {PIECES} or another {JSON} in its place") from error
    return tokenizers.Tokenizer.from_file(str(path))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}", hint="download it again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no table", hint="download it again")
    return data
