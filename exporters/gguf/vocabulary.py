"""A vocabulary as GGUF keeps it: SentencePiece's here, byte-level BPE in `bpe`."""

from __future__ import annotations

from math import isfinite

import gguf

from edge.errors import CheckpointError
from exporters.gguf import bpe, template
from exporters.gguf.reading import AGAIN, Source
from exporters.sources.checkpoint import Checkpoint
from exporters.sources.sentencepiece import Piece, SentencePiece, SpecialIds

MODEL = "llama"  # what SentencePiece's models are called there
_KEY = "tokenizer.ggml."
_DEFAULTS = {"bos": 1, "eos": 2, "unknown": 0}  # what llama.cpp takes where none is set
# An answer ends at any of these for llama.cpp: by what a file sets, and by what a token is called.
_ENDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
_END_TEXTS = (
    *("</s>", "<eos>", "[EOS]", "<EOT>", "_<EOT>", "[EOT]", "<turn|>", "<｜end▁of▁sentence｜>"),
    *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>"),
    *("<end_of_turn>", "<end_of_utterance>", "<|endoftext|>", "<|end_of_text|>", "<|fim_pad|>"),
)


def add(writer: gguf.GGUFWriter, checkpoint: Checkpoint, size: int) -> None:
    """The checkpoint's vocabulary, `size` tokens long. Raises CheckpointError on one that llama.cpp lacks."""
    found, prompt = checkpoint.sentencepiece, checkpoint.spec.prompt
    if found is None:
        bos, unk = prompt.bos_id, None
        texts = bpe.add(writer, checkpoint.tokenizer_json(), size)
        prefix, one_space = False, False
    else:
        normalizer, ids = found.proto.normalizer_spec, found.special_ids()
        bos, unk = prompt.bos_id if prompt.bos_id is not None else ids.bos, ids.unk
        texts = _add_pieces(writer, found, size)
        prefix, one_space = normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces
    if bos is not None:
        writer.add_bos_token_id(bos)
    writer.add_eos_token_id(prompt.end_id)
    others = [i for i in prompt.stop_ids if i != prompt.end_id]
    for add_end, i in zip((writer.add_eot_token_id, writer.add_eom_token_id), others, strict=False):
        add_end(i)  # llama.cpp has no more names, and stops at every end that has one
    if unk is not None:
        writer.add_unk_token_id(unk)
    writer.add_add_bos_token(prompt.bos_id is not None)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(prefix)
    writer.add_remove_extra_whitespaces(one_space)
    writer.add_chat_template(template.jinja(prompt, lambda i: texts[i]))


def _add_pieces(writer: gguf.GGUFWriter, found: SentencePiece, size: int) -> list[str]:
    """And their texts."""
    pieces = found.pieces(size)
    writer.add_tokenizer_model(MODEL)
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.text.encode() for piece in pieces])
    writer.add_token_scores([piece.score for piece in pieces])
    writer.add_token_types([piece.type for piece in pieces])
    return [piece.text for piece in pieces]


def read(file: Source, size: int) -> SentencePiece:
    """The vocabulary of a decoder's file. Raises CheckpointError when it has none of `size` pieces, or one of a kind
    that is not read."""
    if (kind := file.get(f"{_KEY}model")) != MODEL:
        raise CheckpointError(
            f"{file.path.name} has a tokenizer of the kind {kind!r}, expected {MODEL!r} (SentencePiece)",
            hint="another file of the same model, or its checkpoint",
        )
    texts, scores, types = (file.get(f"{_KEY}{key}") for key in ("tokens", "scores", "token_type"))
    columns = (texts, scores, types)
    sound = all(isinstance(column, list) and len(column) == size for column in columns)
    if not sound or not all(map(isfinite, scores)) or not set(types) <= set(range(1, 7)):
        counts = [len(column) if isinstance(column, list) else None for column in columns]
        raise CheckpointError(
            f"{file.path.name} has a damaged vocabulary: {counts} texts, scores and types, of {size} tokens",
            hint=AGAIN,
        )
    return SentencePiece.of(
        [Piece(*row) for row in zip(*columns, strict=True)],
        special_ids(file),
        file.path,
        prefix=_flag(file, "add_space_prefix", True),
        one_space=_flag(file, "remove_extra_whitespaces", False),
    )


def special_ids(file: Source) -> SpecialIds:
    """As the file says, else as llama.cpp takes them to be."""
    return SpecialIds(*(file.get(f"{_KEY}{name}_token_id", default) for name, default in _DEFAULTS.items()))


def bos_id(file: Source, size: int) -> int | None:
    """What llama.cpp puts before a text, None for nothing: where a file of this kind does not say, it puts a token.
    Raises CheckpointError on an id beyond `size`."""
    return _id(file, "bos", special_ids(file).bos, size) if _flag(file, "add_bos_token", True) else None


def stop_ids(file: Source, size: int) -> tuple[int, ...]:
    """Every id at which llama.cpp ends an answer, the end of a text first. Raises CheckpointError on one beyond
    `size`."""
    told = {name: file.get(f"{_KEY}{name}_token_id", _DEFAULTS.get(name)) for name in _ENDS}
    ids = [_id(file, name, value, size) for name, value in told.items() if value is not None]
    texts = file.get(f"{_KEY}tokens")
    ids += [i for i, text in enumerate(texts if isinstance(texts, list) else ()) if text in _END_TEXTS]
    return tuple(dict.fromkeys(ids))


def notes(file: Source) -> tuple[str, ...]:
    """What a bundle does otherwise than the file says, one sentence each."""
    if not _flag(file, "add_eos_token", False):
        return ()
    return (f"llama.cpp ends a text with the token {special_ids(file).eos}: a prompt leaves it out",)


def _id(file: Source, name: str, value: object, size: int) -> int:
    if type(value) is not int or not 0 <= value < size:
        raise CheckpointError(f"{file.path.name}: the {name} token is {value!r}, of {size} tokens", hint=AGAIN)
    return value


def _flag(file: Source, key: str, default: bool) -> bool:
    value = file.get(_KEY + key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{file.path.name}: {_KEY}{key} is {value!r}", hint="true or false; " + AGAIN)
    return value
