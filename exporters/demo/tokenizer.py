"""Train the SentencePiece tokenizer on the world's text: `python -m exporters.demo.tokenizer OUT_DIR`.

It is a Llama tokenizer in small: BPE with byte fallback, a dummy prefix, unk 0, bos 1, eos 2. Words to read must fall
into single letters, so that reading one word teaches reading all. BPE has no such option; therefore the trained
model's merges of capital letters ("SE" on the way to "USER:") are replaced by merges that start at the word's
beginning, which no sign's text shares.
"""

import argparse
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from exporters.demo.prompts import SYSTEM
from exporters.demo.questions import KINDS, NO_SIGN, ask
from exporters.demo.world import LETTERS, scene

SPACE = "\u2581"
READING = (
    "Read the text in the picture. Read the sign. What does the sign say? The sign says What is written on the sign?"
)
VOCABULARY = 700  # before single letters are enforced


def corpus(pictures: int = 3000) -> Iterator[str]:
    """The template and the questions and answers of the world, the text of signs left out."""
    for index in range(pictures):
        what = scene("words", index)
        rng = random.Random(f"words:{index}")
        asked = [ask(what, kind, rng) for kind in KINDS]
        turns = " ".join(f"USER: {q.text} ASSISTANT: {q.answer}" for q in asked if q and q.kind != "read")
        yield f"{SYSTEM} {turns}"
        yield READING
        yield NO_SIGN


def train(folder: Path) -> Path:
    """Write `tokenizer.model` into the folder; the same world always gives the same file."""
    prefix = folder / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(),
        model_prefix=str(prefix),
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        required_chars=LETTERS + "0123456789",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    prefix.with_suffix(".vocab").unlink()
    file = prefix.with_suffix(".model")
    pb2: Any = sentencepiece_model_pb2  # its classes are made at import, where no type checker sees them
    model = pb2.ModelProto.FromString(file.read_bytes())
    _single_letters(model)
    file.write_bytes(model.SerializeToString())
    return file


def _single_letters(model: Any) -> None:
    """Take out merges of capitals, add every word-initial capital and the template's names as chains from its start."""
    kept = [piece for piece in model.pieces if not re.fullmatch(f"{SPACE}?[A-Z:]{{2,}}", piece.piece)]
    have = {piece.piece for piece in kept}
    chains = [SPACE + letter for letter in LETTERS]
    chains += [SPACE + word[:length] for word in ("USER:", "ASSISTANT:") for length in range(2, len(word) + 1)]
    chains = [chain for chain in chains if chain not in have]
    size = -(-(len(kept) + len(chains)) // 32) * 32  # hidden sizes and vocabularies here are multiples of 32
    chains += [SPACE * (2 + index) for index in range(size - len(kept) - len(chains))]  # runs of spaces fill the rest
    lowest = min(piece.score for piece in kept)
    del model.pieces[:]
    model.pieces.extend(kept)
    for index, chain in enumerate(chains, 1):
        model.pieces.add(piece=chain, score=lowest - index)
    model.trainer_spec.vocab_size = len(model.pieces)
    model.trainer_spec.model_prefix = "tokenizer"  # it held this machine's path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    train(parser.parse_args().folder)
