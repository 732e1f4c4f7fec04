"""SentencePiece's own character maps are taken, and no damaged one that is taken ends the process."""

from __future__ import annotations

import base64
import io
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from conftest import REPOSITORY
from sentencepiece import sentencepiece_model_pb2

from edge.inputs import tokenizer_checks

NORMALISED = """
import sys
from tokenizers import normalizers
for line in sys.stdin:
    normalizers.Precompiled(bytes.fromhex(line)).normalize_str("ﷺ Ⅷ ﬁ ｶﾞ \\u200b ０１ é 中 a\\u0300")
print("survived")
"""


def characters(rule: str) -> bytes:
    made = io.BytesIO()
    sentences = iter(["hello world a b c d"] * 50)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_writer=made,
        vocab_size=30,
        model_type="bpe",
        normalization_rule_name=rule,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(made.getvalue())
    found: bytes = model.normalizer_spec.precompiled_charsmap
    return found


def check(content: bytes) -> None:
    tokenizer_checks._check_map(base64.b64encode(content).decode())


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc_cf"])
def test_what_sentencepiece_writes_is_taken(rule: str) -> None:
    check(characters(rule))


def test_damaged_maps_are_refused_or_harmless() -> None:
    random, sound = np.random.default_rng(3), characters("nmt_nfkc")
    taken, refused = [], 0
    for _ in range(30):
        damaged = bytearray(sound)
        for at in random.integers(4, len(sound), size=40).tolist():
            damaged[at] = int(random.integers(256))
        try:
            check(bytes(damaged))
        except ValueError:
            refused += 1
        else:
            taken.append(damaged.hex())
    assert refused > 5
    done = subprocess.run(
        [sys.executable, "-c", NORMALISED], input="\n".join(taken), cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr[-500:]
