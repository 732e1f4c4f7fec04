"""A SentencePiece model, and the tokens that were added to it, as the tokenizer.json of a bundle."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from sentencepiece import sentencepiece_model_pb2 as model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from edge.errors import CheckpointError
from exporters.sources import added_tokens
from exporters.sources.added_tokens import CONFIG, JSON

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ADDED_SCORE = -1000.0  # what converters give a token that was added beside the model
BPE = 2
SPACE = "▁"
PIECES = "tokenizer.model"
_LONGEST = 512  # letters of a piece: how it can be put together is tried at each of them
LLAMA = "LlamaTokenizer"  # the class whose settings these models are usually read with


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
    """A SentencePiece model of a kind that is read, and the tokens that were added to it, by id: in the place of a
    piece, or after them all. `legacy`: a text begins with a space after each added token, too."""

    proto: Any
    added: Mapping[int, AddedToken]
    legacy: bool = True

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
        _readable(proto, path)
        config = added_tokens.read_table(checkpoint / CONFIG)
        if class_name(checkpoint) == LLAMA and added_tokens.flag(config, "add_prefix_space") is False:
            proto.normalizer_spec.add_dummy_prefix = False
        vocabulary = {piece.piece: i for i, piece in enumerate(proto.pieces)}
        return cls(proto, added_tokens.read(checkpoint).placed(vocabulary), is_legacy(checkpoint))

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
            i: AddedToken(piece.text, normalized=False, special=piece.type != USER_DEFINED)
            for i, piece in enumerate(pieces[:count])
            if _is_added(piece)
        }
        return cls(_readable(proto, where), added)

    def pieces(self, size: int) -> list[Piece]:
        """`size` of them: a table may have more rows than there are pieces, and llama.cpp wants a text for each."""
        found = self._own()
        found += [Piece(f"[PAD{i}]", -10000.0, UNUSED) for i in range(len(found), size)]
        for i, token in self.added.items():
            if len(self.proto.pieces) <= i < size:
                found[i] = _added_piece(token)
        return found[:size]

    def special_ids(self) -> SpecialIds:
        """As the model itself has them."""
        ids = {piece.piece: i for i, piece in enumerate(self.proto.pieces) if piece.type in (CONTROL, UNKNOWN)}
        spec = self.proto.trainer_spec
        return SpecialIds(*(ids.get(piece) for piece in (spec.bos_piece, spec.eos_piece, spec.unk_piece)))

    def vocabulary(self) -> dict[str, int]:
        """Every text with an id of its own."""
        own = {piece.text: i for i, piece in enumerate(self._own())}
        return own | {token.content: i for i, token in self.added.items()}

    def beyond(self, rows: int) -> list[str]:
        """Added tokens for which a table of `rows` has none. Raises CheckpointError on a piece that it has none for."""
        if (count := len(self.proto.pieces)) > rows:
            raise CheckpointError(
                f"{PIECES} has {count} pieces, the last of them {self.proto.pieces[-1].piece!r}, and the embedding "
                f"table has {rows} rows",
                hint=f"copy the {PIECES} that belongs to this model beside config.json",
            )
        return [self.added[i].content for i in sorted(self.added) if i >= rows]

    def to_json(self, rows: int | None = None) -> str:
        """The text of a tokenizer.json that computes the same, special tokens left to the prompt. Added tokens from the
        id `rows` on, for which there is no embedding, are left out: they are text.

        Three cases differ from SentencePiece: a text that is nothing but a user-defined piece gets no dummy prefix, nor
        does one that begins with such a piece where only the first piece of a text gets it; and where a model
        normalises with a character map, that is the tokenizers library's reading of it (Hangul jamo differ). Raises
        CheckpointError where the added tokens cannot have their ids.
        """
        own = self._own()
        tokenizer = self._converted(own)
        for i in sorted(i for i in self.added if rows is None or i < rows):
            tokenizer.add_tokens([self._raw(self.added[i])])
            if (found := tokenizer.token_to_id(self.added[i].content)) != i:
                raise CheckpointError(
                    f"the added token {self.added[i].content!r} has the id {i}, but is number {found}",
                    hint=f"number the added tokens from {len(own)} on, without gaps",
                )
        return str(tokenizer.to_str())

    def _own(self) -> list[Piece]:
        """The model's pieces, each as the token that was added in its place, if one was."""
        found = [Piece(piece.piece, piece.score, piece.type) for piece in self.proto.pieces]
        for i, token in self.added.items():
            if i < len(found) and not _restates(token, found[i]):
                found[i] = _added_piece(token)
        return found

    def _raw(self, token: AddedToken) -> AddedToken:
        """To be looked for in the text as it is typed, as transformers does: normalised, it would begin with a space
        itself."""
        if not token.normalized or not self.proto.normalizer_spec.add_dummy_prefix:
            return token
        return AddedToken(
            token.content,
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=False,
            special=token.special,
        )

    def _converted(self, own: Sequence[Piece]) -> tokenizers.Tokenizer:
        trainer, spec = self.proto.trainer_spec, self.proto.normalizer_spec
        unknown = self.special_ids().unk
        tokenizer = tokenizers.Tokenizer(
            models.BPE(
                vocab={piece.text: i for i, piece in enumerate(own)},
                merges=_merges(own),
                unk_token=trainer.unk_piece if unknown is None else own[unknown].text,
                fuse_unk=True,
                byte_fallback=trainer.byte_fallback,
            )
        )
        others = [piece for i, piece in enumerate(own) if i not in self.added]
        # A piece with a space in it is never found: SentencePiece looks for it where spaces are marked already.
        whole = [piece.text for piece in others if piece.type == USER_DEFINED and " " not in piece.text]
        first_only = spec.add_dummy_prefix and not self.legacy
        tokenizer.normalizer = normalizers.Sequence(list(_normalizers(spec, whole, prefix=not first_only)))
        if first_only:
            tokenizer.pre_tokenizer = first_prefix(marked=spec.escape_whitespaces)
        steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        if spec.add_dummy_prefix:
            steps.append(decoders.Strip(" ", 1, 0))
        tokenizer.decoder = decoders.Sequence(steps)
        special = [piece.text for piece in others if piece.type in (CONTROL, UNKNOWN)]
        tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
        tokenizer.add_tokens([AddedToken(text, normalized=True, special=False) for text in whole])
        return tokenizer


def class_name(checkpoint: Path) -> str | None:
    """The class that reads a folder's tokenizer, without "Fast"; None where the folder names none."""
    for file in (CONFIG, "config.json"):
        name = added_tokens.read_table(checkpoint / file).get("tokenizer_class")
        if isinstance(name, str) and name:
            return name.removesuffix("Fast")
    return None


def is_legacy(checkpoint: Path) -> bool:
    """Whether each stretch of text between added tokens begins with a space, or the first one only: as transformers
    takes it where `legacy` is not told, or is null."""
    config = added_tokens.read_table(checkpoint / CONFIG)
    return bool(added_tokens.flag(config, "legacy")) if "legacy" in config else class_name(checkpoint) != LLAMA


def _is_added(piece: Piece) -> bool:
    return piece.type == UNUSED or (piece.type in (CONTROL, USER_DEFINED) and piece.score == ADDED_SCORE)


def _added_piece(token: AddedToken) -> Piece:
    return Piece(token.content, ADDED_SCORE, CONTROL if token.special else USER_DEFINED)


def _restates(token: AddedToken, piece: Piece) -> bool:
    kinds = (CONTROL, UNKNOWN) if token.special else (USER_DEFINED,)
    return token.content == piece.text and piece.type in kinds


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
            raise CheckpointError(f"{where} is not read: {reason}", hint=f"put a {JSON} in its place")
    return proto


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two, the best piece first. SentencePiece keeps only the pieces and
    their scores, and joins whatever neighbours make the piece of the highest score."""
    scores = {piece.text: piece.score for piece in pieces if piece.type == NORMAL}
    if (longest := max(map(len, scores), default=0)) > _LONGEST:
        raise CheckpointError(
            f"a piece of the tokenizer has {longest:,} letters, at most {_LONGEST} are read",
            hint=f"is its {PIECES} damaged?",
        )
    ranked = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                ranked.append((-score, -cut, left, right))
    return [(left, right) for _, _, left, right in sorted(ranked)]


def _normalizers(spec: Any, user_defined: list[str], *, prefix: bool) -> Iterator[Any]:
    if spec.precompiled_charsmap:
        yield normalizers.Precompiled(spec.precompiled_charsmap)
    if spec.remove_extra_whitespaces:
        yield normalizers.Replace(Regex(r"\A +"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")
    space = SPACE if spec.escape_whitespaces else " "
    if spec.add_dummy_prefix and prefix:
        # A user-defined piece is looked for in the normalised text, and is itself normalised for that: unprefixed.
        alone = "|".join(re.escape(piece) for piece in user_defined)
        yield normalizers.Replace(Regex(rf"\A(?!(?:{alone})\z)"), space) if alone else normalizers.Prepend(space)
    if spec.escape_whitespaces:
        yield normalizers.Replace(" ", SPACE)
    if spec.remove_extra_whitespaces:
        yield normalizers.Replace(Regex(rf"{space}+\z"), "")


def first_prefix(*, marked: bool = True) -> Any:
    """The space before the first stretch of a text, `marked` if spaces are. A normaliser sees each stretch between
    added tokens by itself; only here is it known which is the first. Prefixing the mark itself would spare a text that
    begins with one."""
    steps = [pre_tokenizers.Metaspace(" ", "first", split=False)]
    if marked:
        steps.append(pre_tokenizers.Metaspace(SPACE, "never", split=False))
    return pre_tokenizers.Sequence(steps)
