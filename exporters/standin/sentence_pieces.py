"""A small SentencePiece tokenizer in a vocabulary of any size."""

from __future__ import annotations

import io
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

TEXT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: \n"
    "What is in this picture? ASSISTANT: There is a cat on the table. USER: How many dogs are there, and where? "
    "ASSISTANT: 0123456789 dogs; they sit left of the red house!"
)


def sentence_pieces(vocab: int) -> bytes:
    """A Llama tokenizer.model of `vocab` pieces: bytes, what TEXT is made of, and pieces that no text is cut into."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=trained,
        model_type="bpe",
        vocab_size=min(vocab, 512),
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    pb2: Any = sentencepiece_model_pb2
    model = pb2.ModelProto.FromString(trained.getvalue())
    lowest = min(piece.score for piece in model.pieces)
    for index in range(len(model.pieces), vocab):
        model.pieces.add(piece=f"⁂{index}⁂", score=lowest - index)
    model.trainer_spec.vocab_size = len(model.pieces)
    made: bytes = model.SerializeToString()
    return made
