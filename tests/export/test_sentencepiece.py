"""exporters.sources.tokenizer against SentencePiece itself, on models trained here with a decoder's usual settings.

`python tests/export/test_sentencepiece.py` writes tests/data/tokenizer.model and tokenizer.json.
"""

from __future__ import annotations

import io
import json
import random
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import CheckpointError
from edge.inputs.tokenizer import Tokenizer
from exporters.sources.tokenizer import SpecialIds, convert, special_ids

DATA = Path(__file__).parents[1] / "data"
TEXT = """a chat between curious user and an artificial intelligence assistant the gives helpful detailed polite
answers to questions USER ASSISTANT what colour is it circle square red blue green how many where there reads text
12 407 hello naïve façade ñandú 日本 猫は 한국 привет <box> </s>"""
WORDS = TEXT.split()
AWKWARD = [
    *["", " ", "  ", "hello world", "  hello  world  ", "\n", "a\n\nb", "\nWhat colour? ASSISTANT:", "\t\ta", " " * 33],
    *["😀", "👨\u200d👩\u200d👧\u200d👦 family", "🏳️\u200d🌈🇯🇵", "日本語 テスト猫は", "é", "e\u0301"],
    *["nai\u0308ve", "naïve", "\r\n", "ﬁ ½ ①", "\u3000x\u00a0y", "aaaaaaa", "שלום עולם", "नमस्ते", "한국어"],
    *["\x00\x01\x1f\x7f", "\ufeffa", "</s>", "<s> <unk>", "<0x41>", "<0x0A>x", "▁", "a▁b", "▁▁"],
    *["\u1100\u1161", "ab\u200dc\u200b", "𝔘𝔫𝔦"],
    *["<image>", "<box>x", "x<box>", " <box> <box><box>"],
]


@cache
def train(**options) -> bytes:
    rng = random.Random(0)
    sentences = [" ".join(rng.choices(WORDS, k=rng.randint(2, 12))) + rng.choice("?.,") for _ in range(1500)]
    settings = {"vocab_size": 480, "byte_fallback": True, "normalization_rule_name": "identity", "minloglevel": 2,
                "remove_extra_whitespaces": False, "split_digits": True, "model_type": "bpe",
                "allow_whitespace_only_pieces": True, "character_coverage": 0.995}  # fmt: skip
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, **{**settings, **options}
    )
    return model.getvalue()


def both(folder: Path, **options) -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer]:
    (folder / "tokenizer.model").write_bytes(train(**options))
    (folder / "tokenizer.json").write_text(convert(folder), encoding="utf-8")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=train(**options))
    return theirs, Tokenizer.open(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return both(tmp_path_factory.mktemp("pair"))


def agree(pair, text: str) -> None:
    theirs, ours = pair
    ids = theirs.encode(text)
    assert list(ours.encode(text)) == ids, (text, theirs.encode(text, out_type=str))
    assert ours.decode(ids) == theirs.decode(ids), (text, ids)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": True},
        {"add_dummy_prefix": False, "remove_extra_whitespaces": True},
        {"user_defined_symbols": ("<box>", "▁▁▁")},
        {"user_defined_symbols": ("<box>",), "add_dummy_prefix": False},
        {"control_symbols": ("<box>",)},
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        {"bos_id": -1, "unk_id": 2, "eos_id": 0},
    ],
    ids=lambda options: ",".join(options) or "usual",
)
def test_awkward_text_is_sentencepieces(tmp_path, options):
    pair = both(tmp_path, **options)
    for text in AWKWARD:
        if not (options.get("normalization_rule_name") and text == "\u1100\u1161"):  # the docstring names it
            agree(pair, text)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_is_sentencepieces(pair, text):
    agree(pair, text)


@settings(max_examples=300, deadline=None)
@given(text=st.lists(st.sampled_from([*WORDS, " ", "  ", "\n", "<", "é", "▁"]), max_size=12).map("".join))
def test_known_words_are_sentencepieces(pair, text):
    agree(pair, text)


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(3, 479).filter(lambda i: i != 3 + 0x20), max_size=12))
def test_any_ids_decode_as_sentencepiece_does(pair, ids):
    """But for special ids, which a bundle skips as if they were not there, and the byte 0x20 at the start."""
    theirs, ours = pair
    assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("alphabet", ["a ", "ab", "aab b"])
def test_merges_of_equal_pieces_keep_their_order(tmp_path, alphabet):
    rng = random.Random(1)
    sentences = ["".join(rng.choices(alphabet, k=40)) for _ in range(300)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, model_type="bpe", vocab_size=300, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    (tmp_path / "tokenizer.json").write_text(convert(tmp_path), encoding="utf-8")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ours = Tokenizer.open(tmp_path / "tokenizer.json")
    for _ in range(1000):
        agree((theirs, ours), "".join(rng.choices(alphabet, k=rng.randint(1, 60))))


def test_without_byte_fallback_a_run_of_unknowns_is_one_id(tmp_path):
    theirs, ours = both(tmp_path, byte_fallback=False, vocab_size=200)
    for text in AWKWARD:
        assert list(ours.encode(text)) == theirs.encode(text), text
    assert ours.encode("😀😀").count(0) == 1


def test_twenty_thousand_characters(pair):
    text = "".join(random.Random(0).choices(["hello ", "😀", "日本", "\n", "  ", " the", "<", "zq"], k=9000))[:20_000]
    agree(pair, text)


def test_special_ids(tmp_path):
    both(tmp_path)
    assert special_ids(tmp_path) == SpecialIds(bos=1, eos=2, unk=0)
    both(tmp_path, bos_id=-1, unk_id=2, eos_id=0)
    assert special_ids(tmp_path) == SpecialIds(bos=None, eos=0, unk=2)


def test_added_tokens_get_their_ids(tmp_path):
    declared = {
        "2": {"content": "</s>", "special": True},
        "480": {"content": "<pad>", "special": True, "normalized": False},
        "481": {"content": "<tool>", "special": False, "normalized": False},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": declared}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": 480, "<last>": 482}))
    theirs, ours = both(tmp_path)
    assert ours.size == 483
    assert ours.encode("<pad></s>") == tuple(theirs.encode("<pad></s>"))  # special tokens typed are text
    assert ours.encode("a<tool><last>") == (*theirs.encode("a"), 481, 482)
    assert ours.decode([480, 481, 482]) == "<tool><last>"


def test_added_tokens_with_a_gap_are_refused(tmp_path):
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 490}')
    with pytest.raises(CheckpointError, match=r"'<pad>' has the id 490[\s\S]*is number 480[\s\S]*from 480 on"):
        both(tmp_path)


def test_a_folder_with_only_a_tokenizer_json_keeps_it(tmp_path, pair):
    (tmp_path / "tokenizer.json").write_bytes((DATA / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": {"content": "</s>"}}')
    assert json.loads(convert(tmp_path)) == json.loads((DATA / "tokenizer.json").read_text(encoding="utf-8"))
    assert special_ids(tmp_path) == SpecialIds(bos=1, eos=2, unk=None)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"has no tokenizer\.model and no tokenizer\.json"),
        ({"tokenizer.model": b"\xff\xffnot a model"}, "is not a SentencePiece model"),
        ({"tokenizer.model": b""}, "it holds no pieces"),
        ({"tokenizer.json": b"{"}, r"is not a tokenizer\.json"),
        ({"tokenizer.json": b'{"version":"1.0","model":{"type":"WordLevel","vocab":{},"unk_token":"u"}}'}, "decoder"),
        ({"tokenizer.model": None, "added_tokens.json": b"{"}, "is not JSON"),
        ({"tokenizer.model": None, "tokenizer_config.json": b"[]"}, "holds no table"),
        ({"tokenizer.model": None, "tokenizer_config.json": b'{"added_tokens_decoder": [1]}'}, "not understood"),
        ({"tokenizer.model": None, "tokenizer_config.json": b'{"added_tokens_decoder": {"x": {}}}'}, "not understood"),
        ({"tokenizer.model": None, "added_tokens.json": b'{"<pad>": "b"}'}, "not understood"),
    ],
)
def test_what_is_no_tokenizer_is_refused(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(train() if content is None else content)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram", "vocab_size": 350}, "it is no BPE model"),
        ({"treat_whitespace_as_suffix": True}, "it marks a word at its end"),
    ],
)
def test_other_kinds_of_sentencepiece_are_refused(tmp_path, options, message):
    (tmp_path / "tokenizer.model").write_bytes(train(**options))
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path)


def test_the_committed_tokenizer_is_what_convert_writes():
    written, committed = json.loads(convert(DATA)), json.loads((DATA / "tokenizer.json").read_text(encoding="utf-8"))
    for key in ("vocab", "merges"):
        assert written["model"][key] == committed["model"][key]
    assert written["normalizer"] == committed["normalizer"]


if __name__ == "__main__":
    (DATA / "tokenizer.model").write_bytes(train())
    (DATA / "tokenizer.json").write_text(convert(DATA), encoding="utf-8")
