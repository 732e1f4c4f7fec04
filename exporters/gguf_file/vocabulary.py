"""A SentencePiece vocabulary as GGUF keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import gguf

from edge.errors import CheckpointError
from edge.spec import PromptSpec
from exporters import tokenizer
from exporters.gguf_file import template


class Piece(NamedTuple):
    text: str
    score: float
    type: int  # SentencePiece and GGUF count them alike


def add(writer: gguf.GGUFWriter, folder: Path, prompt: PromptSpec, size: int) -> None:
    """The vocabulary of a checkpoint in `folder`, `size` pieces long. Raises CheckpointError when it has none."""
    if not (folder / tokenizer.PIECES).is_file():
        raise CheckpointError(
            f"{str(folder)!r} has no {tokenizer.PIECES}, whose scores a GGUF file carries",
            hint=f"copy {tokenizer.PIECES} of the base model beside config.json",
        )
    normalizer = tokenizer.model(folder).normalizer_spec
    pieces = _pieces(folder, size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.text.encode() for piece in pieces])
    writer.add_token_scores([piece.score for piece in pieces])
    writer.add_token_types([piece.type for piece in pieces])
    ids = tokenizer.special_ids(folder)
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


def _pieces(folder: Path, size: int) -> list[Piece]:
    pieces = [Piece(piece.piece, piece.score, piece.type) for piece in tokenizer.model(folder).pieces]
    # A table may have more rows than the tokenizer has pieces; llama.cpp wants a text for each.
    pieces += [Piece(f"[PAD{i}]", -10000.0, tokenizer.UNUSED) for i in range(len(pieces), size)]
    for i, token in tokenizer.added_tokens(folder).items():
        if i < size:
            kind = tokenizer.CONTROL if token.special else tokenizer.USER_DEFINED
            pieces[i] = Piece(token.content, -1000.0, kind)
    return pieces[:size]
