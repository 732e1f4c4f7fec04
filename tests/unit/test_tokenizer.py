from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from edge.errors import BundleError
from edge.inputs.tokenizer import Tokenizer

FILE = Path(__file__).parents[1] / "data" / "tokenizer.json"
TOKENIZER = Tokenizer.open(FILE)
BYTE = {value: 3 + value for value in range(256)}  # the ids of <0x00> … <0xFF> in this file


def streamed(ids: list[int], tokenizer: Tokenizer = TOKENIZER) -> list[str]:
    stream = tokenizer.stream()
    return [*map(stream.push, ids), stream.finish()]


def test_no_special_ids_are_added():
    ids = TOKENIZER.encode("the red circle")
    assert not {0, 1, 2} & set(ids)
    assert TOKENIZER.encode("") == ()
    assert TOKENIZER.size == 480


@pytest.mark.parametrize("text", ["</s>", "<s>", "<unk>", "a</s>b", "<image>", "<0x0A>", "<0x41>"])
def test_special_tokens_that_are_typed_are_text(text):
    ids = TOKENIZER.encode(text)
    assert not {0, 1, 2, BYTE[0x0A], BYTE[0x41]} & set(ids)
    assert TOKENIZER.decode(ids) == text


def test_special_and_unknown_ids_are_skipped():
    word = TOKENIZER.encode("red")
    assert TOKENIZER.decode([1, *word, 2, 10_000]) == "red"
    assert streamed([1, 2]) == ["", "", ""]


def test_a_token_is_spelled_in_bytes():
    assert TOKENIZER.spelling(BYTE[0xE2]) == b"\xe2"
    assert TOKENIZER.spelling(1) == TOKENIZER.spelling(10_000) == b""
    assert b"".join(map(TOKENIZER.spelling, TOKENIZER.encode("red 🦉"))) == " red 🦉".encode()


def test_only_one_space_at_the_very_start_is_dropped():
    assert TOKENIZER.decode(TOKENIZER.encode("  red")) == "  red"
    assert streamed([1, *TOKENIZER.encode("red blue")])[0] == ""
    assert TOKENIZER.decode([*TOKENIZER.encode("red"), *TOKENIZER.encode("blue")]) == "red blue"


def test_a_character_is_never_cut():
    ids = TOKENIZER.encode("a😀b")
    assert [piece for piece in streamed(list(ids)) if piece] == ["a", "😀", "b"]
    face = [BYTE[byte] for byte in "😀".encode()]
    assert streamed(face[:3]) == ["", "", "", "\ufffd" * 3]
    assert streamed([*face, *face[:2]]) == ["", "", "", "😀", "", "", "\ufffd\ufffd"]


def test_bytes_that_are_no_text_do_not_hold_up_what_follows():
    assert streamed([BYTE[0xFF], *TOKENIZER.encode("red")])[0] == "\ufffd"
    assert TOKENIZER.decode([BYTE[0xE2], BYTE[0x82], BYTE[0x41]]) == "\ufffd\ufffdA"
    assert TOKENIZER.decode([BYTE[0xE2], BYTE[0x82], BYTE[0xAC]]) == "€"


def test_a_finished_stream_holds_nothing():
    stream = TOKENIZER.stream()
    assert stream.push(BYTE[0xF0]) == ""
    assert (stream.finish(), stream.finish()) == ("\ufffd", "")


@given(st.text(max_size=80))
def test_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.lists(st.integers(0, 500), max_size=30))
def test_the_stream_is_the_decoded_text_and_only_ever_grows(ids):
    pieces = streamed(ids)
    assert "".join(pieces) == TOKENIZER.decode(ids)
    assert all(piece.encode() for piece in pieces if piece)  # whole characters: nothing that UTF-8 cannot hold


def test_half_a_surrogate_pair_counts_as_a_replacement_character():
    assert TOKENIZER.encode("a\ud83d b") == TOKENIZER.encode("a\ufffd b")
    assert TOKENIZER.encode("\ud83d\ude00") == TOKENIZER.encode("😀")


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path):
    data = json.loads(FILE.read_text(encoding="utf-8"))
    data["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    data["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                       "pad_type_id": 0, "pad_token": "<unk>"}  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    assert Tokenizer.open(path).encode("the red circle") == TOKENIZER.encode("the red circle")


def byte_level() -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)}
    inner = tokenizers.Tokenizer(models.BPE(vocab={**vocab, "Ġa": 256, "<日本>": 257}, merges=[("Ġ", "a")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<|end|>", special=True)])
    return inner


@given(st.text(max_size=40))
def test_byte_level_tokenizers_come_back_too(text):
    tokenizer = Tokenizer(byte_level())
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_byte_level_streams_whole_characters_and_keeps_its_first_space():
    tokenizer = Tokenizer(byte_level())
    assert [piece for piece in streamed(list(tokenizer.encode(" a😀<|end|>")), tokenizer) if piece][:2] == [" a", "😀"]
    assert tokenizer.decode([256, 257, 258]) == " a<日本>"
    assert 258 not in tokenizer.encode("<|end|>")


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"version": "1.0"}', '{"model": 3}'])
def test_a_damaged_file_is_a_bundle_error(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer\.json") as caught:
        Tokenizer.open(path)
    assert "export" in caught.value.hint


def test_a_decoder_of_another_kind_is_a_bundle_error():
    inner = byte_level()
    inner.decoder = decoders.WordPiece()
    with pytest.raises(BundleError, match=r"decoder \['WordPiece'\]"):
        Tokenizer(inner)
