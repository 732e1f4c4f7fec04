"""A SentencePiece vocabulary as GGUF keeps it."""

from __future__ import annotations

from math import isfinite

import gguf

from edge.errors import CheckpointError
from exporters.checkpoint import Checkpoint
from exporters.gguf import template
from exporters.gguf.reading import AGAIN, Source
from exporters.tokenizer import PIECES, Piece, SentencePiece, SpecialIds

MODEL = "llama"  # what SentencePiece's models are called there


def add(writer: gguf.GGUFWriter, checkpoint: Checkpoint, size: int) -> None:
    """The checkpoint's vocabulary, `size` pieces long. Raises CheckpointError when it has none."""
    found, prompt = checkpoint.sentencepiece, checkpoint.spec.prompt
    if found is None:
        raise CheckpointError(
            f"{str(checkpoint.folder)!r} has no {PIECES}, whose scores a GGUF file carries",
            hint=f"copy {PIECES} of the base model beside config.json",
        )
    normalizer = found.proto.normalizer_spec
    pieces = found.pieces(size)
    writer.add_tokenizer_model(MODEL)
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.text.encode() for piece in pieces])
    writer.add_token_scores([piece.score for piece in pieces])
    writer.add_token_types([piece.type for piece in pieces])
    ids = found.special_ids()
    bos = prompt.bos_id if prompt.bos_id is not None else ids.bos
    if bos is not None:
        writer.add_bos_token_id(bos)
    writer.add_eos_token_id(prompt.end_id)
    if ids.unk is not None:
        writer.add_unk_token_id(ids.unk)
    writer.add_add_bos_token(prompt.bos_id is not None)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(normalizer.add_dummy_prefix)
    writer.add_remove_extra_whitespaces(normalizer.remove_extra_whitespaces)
    writer.add_chat_template(template.jinja(prompt, pieces[prompt.end_id].text))


def read(file: Source, size: int) -> SentencePiece:
    """The vocabulary of a decoder's file. Raises CheckpointError when it has none of `size` pieces, or one of a kind
    that is not read."""
    if (kind := file.get("tokenizer.ggml.model")) != MODEL:
        raise CheckpointError(
            f"{file.path.name} has a tokenizer of the kind {kind!r}, expected {MODEL!r} (SentencePiece)",
            hint="another file of the same model, or its checkpoint",
        )
    texts, scores, types = (file.get(f"tokenizer.ggml.{key}") for key in ("tokens", "scores", "token_type"))
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
        prefix=file.get("tokenizer.ggml.add_space_prefix", True),
        one_space=file.get("tokenizer.ggml.remove_extra_whitespaces", False),
    )


def special_ids(file: Source) -> SpecialIds:
    """As the file says, else as llama.cpp takes them to be."""
    ids = {"bos": 1, "eos": 2, "unknown": 0}
    return SpecialIds(*(file.get(f"tokenizer.ggml.{name}_token_id", default) for name, default in ids.items()))
