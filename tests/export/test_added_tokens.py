"""Added tokens, in whichever of a checkpoint's files they are listed, against transformers' AutoTokenizer."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from edge.tokenizer import Tokenizer
from exporters.sentencepiece import CONTROL, USER_DEFINED, SentencePiece
from exporters.tokenizer import convert

DATA = Path(__file__).parents[1] / "data"
MODEL = (DATA / "tokenizer.model").read_bytes()
PIECES = 480
TEXTS = ("[SEG]", "<box>", "</box>", "<|im_end|>", "<image>", "é!", "two words", "colour", "<a><b>", "é![SEG]")
WORDS = ("a chat", "USER", " ", "  ", "\n", "blue", "é", "x", ".", "colour", "日本", "<", "_", "1")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
FILES = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json")
entries = st.fixed_dictionaries(dict.fromkeys(FLAGS, st.booleans()))
texts = st.lists(st.sampled_from((*WORDS, *TEXTS)), max_size=10).map("".join)


def folder_of(place: Path, **files: object) -> Path:
    place.mkdir(exist_ok=True)
    (place / "tokenizer.model").write_bytes(MODEL)
    (place / "config.json").write_text("{}")
    for name, content in files.items():
        (place / f"{name}.json").write_text(json.dumps(content))
    return place


def theirs_of(folder: Path, **options: object):
    return AutoTokenizer.from_pretrained(str(folder), **options)


def agree(ours: str, theirs, text: str) -> None:
    """As added tokens are found in a text; and as a bundle reads it, where a special token that is typed is text."""
    inner = tokenizers.Tokenizer.from_str(ours)
    assert inner.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False), text
    expected = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert list(Tokenizer(inner).encode(text)) == expected, text


@st.composite
def listings(draw):
    """Added tokens by id, some of them in the place of a piece, and the files that list each."""
    contents = draw(st.lists(st.sampled_from(TEXTS), unique=True, max_size=6))
    replaced = draw(st.lists(st.integers(260, PIECES - 1), unique=True, max_size=len(contents)))
    ids = [*replaced, *range(PIECES, PIECES + len(contents) - len(replaced))]
    tokens, places = {}, {}
    for i, content in zip(ids, contents, strict=True):
        places[i] = draw(st.lists(st.sampled_from(FILES), unique=True, min_size=1))
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
        tokens[i] = {"content": content, **(plain if places[i] == ["added_tokens.json"] else draw(entries))}
    return tokens, places


def listed(tokens, places) -> dict[str, object]:
    """The contents of the files."""
    config = {i: token for i, token in tokens.items() if "tokenizer_config.json" in places[i]}
    fast = [{"id": i, **token} for i, token in tokens.items() if "tokenizer.json" in places[i]]
    plain = {token["content"]: i for i, token in tokens.items() if "added_tokens.json" in places[i]}
    files = {"tokenizer_config": {"added_tokens_decoder": config} if config else {}, "added_tokens": plain}
    return {**files, "tokenizer": {"added_tokens": fast}} if fast else files


@settings(max_examples=30, deadline=None)
@given(listing=listings(), legacy=st.sampled_from((True, False, None, ...)), asked=st.lists(texts, max_size=6))
def test_any_placement_is_as_one_list_for_transformers(listing, legacy, asked):
    tokens, places = listing
    told = {} if legacy is ... else {"legacy": legacy}
    with TemporaryDirectory() as place:
        ours = folder_of(Path(place, "ours"), **listed(tokens, places))
        config = json.loads((ours / "tokenizer_config.json").read_text())
        (ours / "tokenizer_config.json").write_text(json.dumps({**config, **told}))
        text = convert(ours)
        one = folder_of(Path(place, "one"), tokenizer_config={**told, "added_tokens_decoder": tokens})
        theirs = theirs_of(one)
        pieces = SentencePiece.open(ours).pieces(PIECES + len(TEXTS))
    inner = tokenizers.Tokenizer.from_str(text)
    for i, token in tokens.items():
        assert inner.id_to_token(i) == theirs.convert_ids_to_tokens(i) == pieces[i].text == token["content"]
        assert pieces[i].type == (CONTROL if token["special"] else USER_DEFINED)
    for question in asked:
        # Where only the first piece gets a space, transformers spares a text that begins with one; SentencePiece not.
        agree(text, theirs, question if legacy in (True, ...) else question.lstrip(" "))


@settings(max_examples=20, deadline=None)
@given(
    tokens=st.lists(st.tuples(st.sampled_from(TEXTS), entries), unique_by=lambda token: token[0], max_size=5),
    legacy=st.sampled_from((True, False, None, ...)),
    asked=st.lists(texts, max_size=6),
    name=st.sampled_from(("LlamaTokenizer", "LlamaTokenizerFast")),
)
def test_the_llama_class_is_transformers(tokens, legacy, asked, name):
    listed = {PIECES + i: {"content": text, **flags} for i, (text, flags) in enumerate(tokens)}
    raw = {i: {**token, "normalized": False} for i, token in listed.items()}
    told = {"tokenizer_class": name, **({} if legacy is ... else {"legacy": legacy})}
    with TemporaryDirectory() as place:
        text = convert(folder_of(Path(place, "ours"), tokenizer_config={**told, "added_tokens_decoder": listed}))
        # It has no normaliser: `normalized` does nothing there but to let other tokens go first.
        theirs = theirs_of(folder_of(Path(place, "raw"), tokenizer_config={**told, "added_tokens_decoder": raw}))
    for question in asked:
        # That class spares every stretch that begins with a space; SentencePiece none.
        agree(text, theirs, question.replace(" ", "_") if legacy is True else question.lstrip(" "))


@pytest.mark.parametrize("text", ["a", " a", "  a", "▁a", "a  b ", "[SEG]", "a[SEG]b", "[SEG] b[SEG]", " [SEG]  b", ""])
@pytest.mark.parametrize("legacy", [True, False])
def test_stretches_between_tokens_are_sentencepieces(tmp_path, legacy, text):
    """SentencePiece puts the space before whatever it is given; `legacy` false gives it to the first stretch only."""
    seg = {PIECES: {"content": "[SEG]", "normalized": False}}
    folder = folder_of(tmp_path / "f", tokenizer_config={"legacy": legacy, "added_tokens_decoder": seg})
    (tmp_path / "tokenizer.json").write_text(convert(folder))
    prefixed, bare = SentencePieceProcessor(model_proto=MODEL), SentencePieceProcessor(model_proto=unprefixed())
    expected = []
    for number, stretch in enumerate(text.split("[SEG]")):
        model = prefixed if legacy or number == 0 else bare
        expected += [*([PIECES] if number else []), *(model.encode(stretch) if stretch else [])]
    assert list(Tokenizer.open(tmp_path / "tokenizer.json").encode(text)) == expected


@cache
def unprefixed() -> bytes:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(MODEL)
    model.normalizer_spec.add_dummy_prefix = False
    return model.SerializeToString()
