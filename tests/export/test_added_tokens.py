"""Added tokens, in whichever of a checkpoint's files they are listed, against transformers' AutoTokenizer."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from edge.errors import CheckpointError
from edge.inputs.tokenizer import Tokenizer
from exporters.sources.sentencepiece import CONTROL, USER_DEFINED, SentencePiece
from exporters.sources.tokenizer import convert

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


@settings(max_examples=20, deadline=None)
@given(
    tokens=st.lists(
        st.tuples(st.sampled_from(TEXTS).filter(lambda text: text != "colour"), entries),  # which is a piece here
        unique_by=lambda token: token[0],
        max_size=5,
    ),
    own=st.integers(0, 5),
    asked=st.lists(texts, max_size=6),
)
def test_a_byte_level_tokenizer_takes_them_from_all_files(tokens, own, asked):
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner.train_from_iterator(WORDS, trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    size = inner.get_vocab_size()
    inner.add_tokens([AddedToken(text, **flags) for text, flags in tokens[:own]])
    listed = {size + i: {"content": text, **flags} for i, (text, flags) in enumerate(tokens)}
    with TemporaryDirectory() as place:
        folder = folder_of(Path(place, "ours"), tokenizer_config={"added_tokens_decoder": listed})
        (folder / "tokenizer.model").unlink()
        inner.save(str(folder / "tokenizer.json"))
        text, theirs = convert(folder), theirs_of(folder)
    for question in asked:
        agree(text, theirs, question)


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("legacy", [True, False, None, ...])
@pytest.mark.parametrize("name", ["LlamaTokenizer", "PreTrainedTokenizerFast", ...])
def test_a_llama_tokenizer_json_follows_the_flag(tmp_path, saved, legacy, name):
    """However it was saved; other classes take the file as it is."""
    seg = {PIECES: {"content": "[SEG]", "special": False, "normalized": False}}
    saver = folder_of(tmp_path / "saver", tokenizer_config={"legacy": saved, "added_tokens_decoder": seg})
    told = {key: value for key, value in (("legacy", legacy), ("tokenizer_class", name)) if value is not ...}
    folder = folder_of(tmp_path / "folder", tokenizer_config=told)
    (folder / "tokenizer.json").write_text(convert(saver))
    (folder / "tokenizer.model").unlink()
    text, theirs = convert(folder), theirs_of(folder)
    for question in ("a", "a[SEG]b", "[SEG]b[SEG]", "a[SEG][SEG]x a"):
        agree(text, theirs, question)


@pytest.mark.parametrize("role", ["pad_token", "cls_token", "image_token"])
@pytest.mark.parametrize("file", ["tokenizer_config", "special_tokens_map"])
@pytest.mark.parametrize("where", ["nowhere", "added_tokens", "tokenizer_config", "tokenizer", "a piece"])
def test_a_token_with_a_role_is_special(tmp_path, role, file, where):
    """Whatever the lists say."""
    content = "colour" if where == "a piece" else "[ROLE]"
    folder = folder_of(tmp_path / "f", tokenizer_config={})
    plain = {PIECES: {"content": "[ROLE]", "special": False, "normalized": False}}
    if where == "added_tokens":
        folder_of(folder, added_tokens={"[ROLE]": PIECES})
    elif where == "tokenizer_config":
        folder_of(folder, **in_config(plain))
    elif where == "tokenizer":
        saver = folder_of(tmp_path / "saver", **in_config(plain))
        (folder / "tokenizer.json").write_text(convert(saver))
    path = folder / f"{file}.json"
    told = json.loads(path.read_text()) if path.exists() else {}
    if where == "tokenizer_config" and file == "special_tokens_map":
        pytest.skip("transformers does not read the older file beside such a list")
    path.write_text(json.dumps({**told, role: content}))
    text, theirs = convert(folder), theirs_of(folder)
    assert tokenizers.Tokenizer.from_str(text).token_to_id(content) == theirs.convert_tokens_to_ids(content)
    for question in ("a [ROLE] b", "[ROLE]", "colour a", "a colour"):
        agree(text, theirs, question)


@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
def test_special_tokens_that_nothing_numbers_come_last(tmp_path, key):
    seg = {PIECES: {"content": "[SEG]"}}
    told = {"added_tokens_decoder": seg, "pad_token": "[PAD]", key: ["<x>", "[SEG]", "<y>"]}
    folder = folder_of(tmp_path / "f", tokenizer_config=told)
    text, theirs = convert(folder), theirs_of(folder)
    made = tokenizers.Tokenizer.from_str(text)
    for content in ("[SEG]", "[PAD]", "<x>", "<y>"):
        assert made.token_to_id(content) == theirs.convert_tokens_to_ids(content)
    agree(text, theirs, "a[PAD]<x>[SEG] <y>b")


def in_config(tokens: object) -> dict[str, object]:
    return {"tokenizer_config": {"added_tokens_decoder": tokens}}


CONTRADICTIONS = {
    "one id, two texts": (
        {"added_tokens": {"<a>": 480}, **in_config({"480": {"content": "<b>"}})},
        r"the id 480 is '<a>' in added_tokens\.json, and '<b>' in tokenizer_config\.json",
    ),
    "one id, two texts, in tokenizer.json": (
        {"tokenizer": {"added_tokens": [{"id": 480, "content": "<a>"}]}, "added_tokens": {"<b>": 480}},
        r"the id 480 is '<b>' in added_tokens\.json, and '<a>' in tokenizer\.json",
    ),
    "one text, two ids": (
        {"added_tokens": {"<a>": 481}, **in_config({"480": {"content": "<a>"}})},
        r"'<a>' has the id 481 in added_tokens\.json, and 480 in tokenizer_config\.json",
    ),
    "one text, two ids in one file": (
        in_config({"480": {"content": "<a>"}, "481": {"content": "<a>"}}),
        r"'<a>' has the id 480 in tokenizer_config\.json, and 481",
    ),
    "one id twice in one file": (
        {"tokenizer": {"added_tokens": [{"id": 480, "content": "<a>"}, {"id": 480, "content": "<b>"}]}},
        "not understood",
    ),
    "a piece's text": ({"added_tokens": {"a": 480}}, r"'a' has the id 480, but the vocabulary has it as \d+"),
    "a piece's text in another's place": (in_config({"300": {"content": "</s>"}}), "'</s>' has the id 300, .* as 2$"),
    "no text": ({"added_tokens": {"": 480}}, "not understood"),
    "half a character": (in_config({"480": {"content": "\ud800"}}), "not understood"),
    "a flag of another kind": (in_config({"480": {"content": "<a>", "lstrip": "yes"}}), "not understood"),
    "a negative id": ({"added_tokens": {"<a>": -1}}, "not understood"),
    "an id that is no number": ({"added_tokens": {"<a>": True}}, "not understood"),
    "a huge id": ({"added_tokens": {"<a>": 10**30}}, "not understood"),
    "no list": ({"tokenizer": {"added_tokens": {"480": "<a>"}}}, "not understood"),
    "no table": (in_config([{"content": "<a>"}]), "not understood"),
}


@pytest.mark.parametrize(("files", "match"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_contradictions_and_damage_are_refused(tmp_path, files, match):
    with pytest.raises(CheckpointError, match=re.compile(match, re.MULTILINE)) as caught:
        convert(folder_of(tmp_path / "f", **files))
    assert caught.value.hint


def test_two_pieces_may_change_places(tmp_path):
    pieces = SentencePiece.open(folder_of(tmp_path / "plain")).pieces(PIECES)
    swapped = {300: {"content": pieces[301].text}, 301: {"content": pieces[300].text}}
    found = SentencePiece.open(folder_of(tmp_path / "f", **in_config(swapped)))
    assert [piece.text for piece in found.pieces(PIECES)[300:302]] == [pieces[301].text, pieces[300].text]


def test_a_tokenizer_json_and_a_list_that_disagree_are_refused(tmp_path):
    folder = folder_of(tmp_path / "f")
    (folder / "tokenizer.json").write_text(convert(folder))
    (folder / "tokenizer.model").unlink()
    (folder / "added_tokens.json").write_text('{"<a>": 300}')
    with pytest.raises(CheckpointError, match=r"the id 300 is '.*' in tokenizer\.json, and '<a>' elsewhere"):
        convert(folder)


def test_the_space_before_a_text_is_the_class_s_to_leave_out(tmp_path):
    told = {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}
    folder = folder_of(tmp_path / "f", tokenizer_config=told)
    agree(convert(folder), theirs_of(folder), "a chat a")
