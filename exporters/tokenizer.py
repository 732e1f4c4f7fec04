"""The tokenizer of a checkpoint, SentencePiece's or its own tokenizer.json, as the tokenizer.json of a bundle."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from sentencepiece import sentencepiece_model_pb2 as model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers

from edge.errors import BundleError, CheckpointError
from edge.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ADDED_SCORE = -1000.0  # what converters give a token that was added beside the model
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


class Piece(NamedTuple):
    text: str
    score: float
    type: int  # SentencePiece and GGUF count them alike


@dataclass(frozen=True)
class SentencePiece:
    """A SentencePiece model of a kind that is read, and the tokens that were added beside it, by id."""

    proto: Any
    added: Mapping[int, AddedToken]

    @classmethod
    def open(cls, checkpoint: Path) -> SentencePiece | None:
        """That of a checkpoint's folder; None where it has no `tokenizer.model`. Raises CheckpointError on damage."""
        path = checkpoint / PIECES
        if not path.is_file():
            return None
        proto = model_pb2.ModelProto()  # type: ignore[attr-defined]  # protobuf makes the class when it is imported
        try:
            proto.ParseFromString(path.read_bytes())
        except DecodeError as error:
            raise CheckpointError(f"{path} is not a SentencePiece model: {error}", hint="download it again") from error
        return cls(_readable(proto, path), _added_tokens(checkpoint))

    @classmethod
    def of(
        cls, pieces: Sequence[Piece], special: SpecialIds, where: Path, *, prefix: bool, one_space: bool
    ) -> SentencePiece:
        """From the pieces as a GGUF file `where` keeps them: tokens that were added have a score of their own there,
        and rows of the table that no piece belongs to have a text. `prefix`: a text begins with a space; `one_space`:
        several in a row count as one."""
        count = max((i + 1 for i, piece in enumerate(pieces) if piece.type != UNUSED), default=0)
        own = max((i + 1 for i, piece in enumerate(pieces[:count]) if not _is_added(piece)), default=0)
        if len({piece.text for piece in pieces[:count]}) < count:
            raise CheckpointError(f"{where} has a piece of its vocabulary twice", hint="download it again")
        proto = model_pb2.ModelProto()  # type: ignore[attr-defined]
        for piece in pieces[:own]:
            proto.pieces.add(piece=piece.text, score=piece.score, type=piece.type)
        trainer = proto.trainer_spec
        trainer.model_type = BPE
        trainer.byte_fallback = any(piece.type == BYTE for piece in pieces)
        for name in ("bos", "eos", "unk"):
            i = getattr(special, name)
            setattr(trainer, f"{name}_piece", pieces[i].text if i in range(len(pieces)) else "")
        proto.normalizer_spec.add_dummy_prefix = prefix
        proto.normalizer_spec.remove_extra_whitespaces = one_space
        added = {
            i: AddedToken(pieces[i].text, normalized=False, special=pieces[i].type != USER_DEFINED)
            for i in range(own, count)
        }
        return cls(_readable(proto, where), added)

    def pieces(self, size: int) -> list[Piece]:
        """`size` of them: a table may have more rows than there are pieces, and llama.cpp wants a text for each."""
        found = [Piece(piece.piece, piece.score, piece.type) for piece in self.proto.pieces]
        found += [Piece(f"[PAD{i}]", -10000.0, UNUSED) for i in range(len(found), size)]
        for i, token in self.added.items():
            if i < size:
                found[i] = Piece(token.content, ADDED_SCORE, CONTROL if token.special else USER_DEFINED)
        return found[:size]

    def special_ids(self) -> SpecialIds:
        ids = {piece.piece: i for i, piece in enumerate(self.proto.pieces) if piece.type in (CONTROL, UNKNOWN)}
        spec = self.proto.trainer_spec
        return SpecialIds(*(ids.get(piece) for piece in (spec.bos_piece, spec.eos_piece, spec.unk_piece)))

    def to_json(self) -> str:
        """The text of a tokenizer.json that computes the same, special tokens left to the prompt.

        Two cases differ from SentencePiece: a text that is nothing but a user-defined piece gets no dummy prefix, and
        where a model normalises with a character map, that is the tokenizers library's reading of it (Hangul jamo
        differ). Raises CheckpointError where the added tokens cannot have their ids.
        """
        tokenizer = _from_pieces(self.proto)
        size = tokenizer.get_vocab_size()
        for i in sorted(i for i in self.added if i >= size):
            tokenizer.add_tokens([self.added[i]])
            if (found := tokenizer.token_to_id(self.added[i].content)) != i:
                raise CheckpointError(
                    f"the added token {self.added[i].content!r} has the id {i}, but is number {found}",
                    hint=f"number the added tokens from {size} on, without gaps",
                )
        return str(tokenizer.to_str())


def convert(checkpoint: Path) -> str:
    """The text of a tokenizer.json that computes what the tokenizer of a checkpoint's folder does. `tokenizer.model`
    comes first where a folder has both files. Raises CheckpointError when there is no tokenizer, or one of a kind that
    is not read."""
    if pieces := SentencePiece.open(checkpoint):
        return pieces.to_json()
    if (checkpoint / JSON).is_file():
        return str(_from_json(checkpoint).to_str())
    raise CheckpointError(
        f"{str(checkpoint)!r} has no {PIECES} and no {JSON}", hint="copy the tokenizer's files beside config.json"
    )


def special_ids(checkpoint: Path) -> SpecialIds:
    """The ids that begin a text, end one, and stand for the unknown; None for what the tokenizer lacks."""
    if pieces := SentencePiece.open(checkpoint):
        return pieces.special_ids()
    vocab = _from_json(checkpoint).get_vocab()
    config = _read(checkpoint / CONFIG)
    tokens = [config.get(key) for key in ("bos_token", "eos_token", "unk_token")]
    return SpecialIds(*(vocab.get(str(t["content"] if isinstance(t, dict) else t)) for t in tokens))


def _is_added(piece: Piece) -> bool:
    return piece.type == UNUSED or (piece.type in (CONTROL, USER_DEFINED) and piece.score == ADDED_SCORE)


def _readable(proto: Any, where: Path) -> Any:
    """The SentencePiece model, if of a kind that is read. Raises CheckpointError on any other."""
    trainer = proto.trainer_spec
    unread = {
        "it holds no pieces": not proto.pieces,
        "it is no BPE model": trainer.model_type != BPE,
        "it marks a word at its end": trainer.treat_whitespace_as_suffix,
        "it has unused pieces": any(piece.type == UNUSED for piece in proto.pieces),
    }
    for reason, applies in unread.items():
        if applies:
            raise CheckpointError(f"{where} is not read: {reason}", hint="put a tokenizer.json in its place")
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


def _added_tokens(checkpoint: Path) -> dict[int, AddedToken]:
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
