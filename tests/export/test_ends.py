"""Where a conversation begins and ends: BOS as the tokenizer puts it, stop ids, tokens that the table lacks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GenerationConfig

from edge.errors import CheckpointError
from edge.inputs.tokenizer import Tokenizer
from exporters import standin
from exporters.sources import stop_ids
from exporters.sources.checkpoint import open_checkpoint
from exporters.sources.sentencepiece import SpecialIds
from exporters.sources.tokenizer import bos_id, convert, ends, notes, special_ids

MODEL = (Path(__file__).parents[1] / "data" / "tokenizer.model").read_bytes()
ROWS = 512


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ends") / "checkpoint"
    standin.write(folder, standin.SHAPES["tiny"])
    return folder


@pytest.fixture
def checkpoint(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


def write(folder: Path, **files: object) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def edit(path: Path, **values: object) -> None:
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**data, **values}))


def byte_level(*special: str) -> tokenizers.Tokenizer:
    found = tokenizers.Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", *special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    found.train_from_iterator(["a chat between a user and an assistant"] * 9, trainer)
    return found


def around(before: list[str], after: list[str], ids: dict[str, int]) -> processors.TemplateProcessing:
    single = " ".join([*(f"{token}:0" for token in before), "$A:0", *(f"{token}:0" for token in after)])
    return processors.TemplateProcessing(
        single=single, pair=f"{single} $B:1", special_tokens=[(token, ids[token]) for token in {*before, *after}]
    )


# Beginnings

PROCESSORS = {
    "none": ([], []),
    "a beginning": (["<s>"], []),
    "an end": ([], ["</s>"]),
    "both": (["<s>"], ["</s>"]),
}


@pytest.mark.parametrize("told", [{}, {"add_bos_token": True, "add_eos_token": False}, {"add_bos_token": False}])
@pytest.mark.parametrize("name", ["GPT2Tokenizer", "PreTrainedTokenizerFast", "LlamaTokenizerFast", None])
@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_post_processor_of_a_tokenizer_json_decides(tmp_path, processor, name, told):
    before, after = PROCESSORS[processor]
    inner = byte_level("<s>", "</s>")
    if processor != "none":
        inner.post_processor = around(before, after, inner.get_vocab())
    inner.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", **({"tokenizer_class": name} if name else {}), **told}
    write(tmp_path, tokenizer_config=config, config={})
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    whole, bare = theirs.encode("a chat"), theirs.encode("a chat", add_special_tokens=False)
    found = ends(tmp_path)
    assert [*found.before, *bare, *found.after] == whole
    assert bos_id(tmp_path, ROWS) == (1 if before else None)
    said = notes(tmp_path, ROWS)
    contradicted = [
        key
        for key, ids in (("add_bos_token", before), ("add_eos_token", after))
        if told.get(key, bool(ids)) != bool(ids)
    ]
    assert [note.split(" is ")[0] for note in said if "is followed" in note] == contradicted
    assert any("ends a text with the token 2" in note for note in said) == bool(after)


def test_a_post_processor_beside_a_sentencepiece_model_decides(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    made = tokenizers.Tokenizer.from_str(convert(tmp_path))
    made.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, tokenizer_config={"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}, config={})
    assert AutoTokenizer.from_pretrained(str(tmp_path))("a").input_ids[0] != 1
    assert bos_id(tmp_path, ROWS) is None
    assert notes(tmp_path, ROWS) == (
        "add_bos_token is true in tokenizer_config.json, but tokenizer.json puts none, and is followed",
    )
    made.post_processor = around(["<s>"], [], made.get_vocab())
    made.save(str(tmp_path / "tokenizer.json"))
    assert bos_id(tmp_path, ROWS) == AutoTokenizer.from_pretrained(str(tmp_path))("a").input_ids[0] == 1
    assert notes(tmp_path, ROWS) == ()


@pytest.mark.parametrize("begins", [True, False, None, ...])
@pytest.mark.parametrize("finishes", [True, False, ...])
@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", ...])
def test_a_sentencepiece_model_goes_by_the_settings(tmp_path, begins, finishes, name):
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    told = {"add_bos_token": begins, "add_eos_token": finishes, "tokenizer_class": name}
    told = {key: value for key, value in told.items() if value is not ...}
    write(tmp_path, tokenizer_config=told, config={})
    found = ends(tmp_path)
    if isinstance(begins, bool):
        whole = AutoTokenizer.from_pretrained(str(tmp_path))("a").input_ids
        assert (whole[0] == 1) == (found.before == (1,))
        assert (whole[-1] == 2) == (found.after == (2,))
    else:  # LlamaTokenizer's documented default; a bare model is that class's
        assert found.before == ((1,) if name is ... or name.startswith("Llama") else ())
    assert any("ends a text with the token 2" in note for note in notes(tmp_path, ROWS)) == (finishes is True)


def test_the_class_may_be_named_in_the_config(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    write(tmp_path, config={"tokenizer_class": "PreTrainedTokenizerFast"})
    assert bos_id(tmp_path, ROWS) is None


@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("tokenizer_config", "▁a"),
        ("tokenizer_config", {"__type": "AddedToken", "content": "▁a", "lstrip": False}),
        ("special_tokens_map", "▁a"),
        ("special_tokens_map", {"content": "▁a", "lstrip": False}),
    ],
)
def test_the_named_token_begins_a_text(tmp_path, file, value):
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    write(tmp_path, config={}, tokenizer_config={"add_bos_token": True})
    edit(tmp_path / f"{file}.json", bos_token=value)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    assert bos_id(tmp_path, ROWS) == special_ids(tmp_path).bos == theirs("x").input_ids[0] != 1


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"tokenizer_config": {"add_bos_token": "true"}}, "add_bos_token 'true'"),
        ({"tokenizer_config": {"add_eos_token": 1}}, "add_eos_token 1"),
        ({"tokenizer_config": {"legacy": "no"}}, "legacy 'no'"),
        ({"tokenizer_config": {"bos_token": 1}}, "bos_token has '1'"),
        ({"tokenizer_config": {"bos_token": {"text": "<s>"}}}, "not understood"),
        ({"special_tokens_map": {"additional_special_tokens": "<x>"}}, "additional_special_tokens has '<x>'"),
        ({"special_tokens_map": [1]}, "holds no table"),
    ],
)
def test_settings_of_another_kind_are_refused(tmp_path, files, match):
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    write(tmp_path, **files)
    with pytest.raises(CheckpointError, match=match) as caught:
        notes(tmp_path, ROWS)
    assert caught.value.hint


def test_two_beginnings_are_refused(tmp_path):
    inner = byte_level("<s>", "</s>")
    inner.post_processor = around(["<s>", "</s>"], [], inner.get_vocab())
    inner.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"begins a text with 2 tokens, \[1, 2\]"):
        bos_id(tmp_path, ROWS)


def test_a_beginning_without_an_embedding_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    write(tmp_path, tokenizer_config={"bos_token": "<new>"})
    with pytest.raises(CheckpointError, match="begins a text with the token 480, and the embedding table has 480 rows"):
        bos_id(tmp_path, 480)


# Ends

id_lists = st.none() | st.integers(0, ROWS - 1) | st.lists(st.integers(0, ROWS - 1), max_size=4)


@settings(max_examples=100, deadline=None)
@given(own=id_lists | st.just(...), generation=id_lists | st.just(...), eos=st.none() | st.integers(0, ROWS - 1))
def test_an_answer_ends_at_any_id_of_both_files(tmp_path_factory, own, generation, eos):
    folder = tmp_path_factory.mktemp("stops")
    config = {} if own is ... else {"eos_token_id": own}
    wanted: set[int] = set()
    if generation is not ...:
        write(folder, generation_config={"eos_token_id": generation})
        wanted |= ids_of(GenerationConfig.from_pretrained(folder).eos_token_id)
    wanted |= ids_of(config.get("eos_token_id"))
    if wanted or eos is not None:
        assert set(stop_ids.read(folder, config, eos, ROWS)) == (wanted or {eos})
    else:
        with pytest.raises(CheckpointError, match="nothing tells which token ends an answer"):
            stop_ids.read(folder, config, eos, ROWS)


def ids_of(value: int | list[int] | None) -> set[int]:
    return set() if value is None else set(value) if isinstance(value, list) else {value}


@pytest.mark.parametrize("value", [True, -1, 2.0, "2", ROWS, [2, None], [[2]], {"a": 2}, [2, ROWS], 10**400])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_damaged_stop_ids_are_refused_by_name(checkpoint, file, value):
    edit(checkpoint / file, eos_token_id=value)
    with pytest.raises(CheckpointError, match=rf"eos_token_id is .* in {file}: .* is no id") as caught:
        open_checkpoint(str(checkpoint))
    assert "from 0 to 511" in caught.value.hint


def test_the_config_names_what_closes_a_turn(checkpoint):
    edit(checkpoint / "generation_config.json", eos_token_id=[7, 2, 9])
    prompt = open_checkpoint(str(checkpoint)).spec.prompt
    assert (prompt.stop_ids, prompt.end_id) == ((2, 7, 9), 2)


def test_a_stop_id_that_only_the_tokenizer_knows_needs_an_embedding(tmp_path):
    with pytest.raises(CheckpointError, match="eos_token has the id 512, and the embedding table has 512 rows"):
        stop_ids.read(tmp_path, {}, ROWS, ROWS)


# Tokens without an embedding


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("file", ["tokenizer_config", "added_tokens", "tokenizer"])
def test_tokens_beyond_the_table_are_text(checkpoint, file, special):
    content = {
        "tokenizer_config": {
            "added_tokens_decoder": {"512": {"content": "[PAD]", "special": special}, "514": {"content": "<im>"}}
        },
        "added_tokens": {"[PAD]": 512, "<im>": 514},
    }
    if file == "tokenizer":
        fast = tokenizers.Tokenizer.from_str(open_checkpoint(str(checkpoint)).tokenizer_json())
        fast.add_tokens([AddedToken("[PAD]", special=special), AddedToken("<im>")])
        fast.save(str(checkpoint / "tokenizer.json"))
    else:
        write(checkpoint, **{file: content[file]})
    plain = Tokenizer(tokenizers.Tokenizer.from_str(convert(Path(checkpoint), 512)))
    found = open_checkpoint(str(checkpoint))
    assert len(found.notes) == 1
    assert "has 512 rows, and none for '[PAD]', '<im>'" in found.notes[0]
    made = Tokenizer(tokenizers.Tokenizer.from_str(found.tokenizer_json()))
    assert made.size == 512
    assert made.decode(made.encode("what does [PAD] mean? <im>")) == "what does [PAD] mean? <im>"
    assert made.encode("[PAD]") == plain.encode("[PAD]")


def test_a_tokenizer_json_loses_the_same(tmp_path):
    inner = byte_level("<s>", "</s>")
    size = inner.get_vocab_size()
    inner.add_tokens([AddedToken("<image>", special=False), AddedToken("[PAD]", special=True)])
    inner.save(str(tmp_path / "tokenizer.json"))
    made = tokenizers.Tokenizer.from_str(convert(tmp_path, size + 1))
    assert (made.token_to_id("<image>"), made.token_to_id("[PAD]")) == (size, None)
    assert "and none for '[PAD]'" in notes(tmp_path, size + 1)[0]
    assert Tokenizer(made).decode(Tokenizer(made).encode("a <image> [PAD]")) == "a <image> [PAD]"
    assert "<image>" in convert(tmp_path, size + 2)
    assert notes(tmp_path, size + 2) == ()


def test_a_special_token_inside_the_vocabulary_is_left_out_too(tmp_path):
    inner = byte_level("<s>", "</s>")
    data = json.loads(inner.to_str())
    top = inner.get_vocab_size()
    data["model"]["vocab"]["<image>"] = top
    data["added_tokens"].append({**data["added_tokens"][0], "content": "<image>", "id": top})
    write(tmp_path, tokenizer=data)
    assert tokenizers.Tokenizer.from_str(convert(tmp_path, top)).token_to_id("<image>") is None


def test_a_piece_without_an_embedding_is_refused(checkpoint, tmp_path):
    (checkpoint / "tokenizer.model").write_bytes(standin.sentence_pieces(513))
    with pytest.raises(CheckpointError, match=r"has 513 pieces, the last of them '⁂512⁂', .* has 512 rows"):
        open_checkpoint(str(checkpoint))
    inner = byte_level()
    inner.save(str(tmp_path / "tokenizer.json"))
    top = inner.get_vocab_size() - 1
    with pytest.raises(CheckpointError, match=rf"with the id {top}, and the embedding table has {top} rows"):
        notes(tmp_path, top)


def test_a_missing_end_of_turn_is_refused_not_left_out(checkpoint):
    write(checkpoint, tokenizer_config={"added_tokens_decoder": {"512": {"content": "<|im_end|>", "special": True}}})
    edit(checkpoint / "generation_config.json", eos_token_id=[2, 512])
    with pytest.raises(CheckpointError, match=r"eos_token_id is \[2, 512\] in generation_config\.json: 512 is no id"):
        open_checkpoint(str(checkpoint))


def test_more_rows_keep_the_token(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name][:1]])
    save_file(tensors, checkpoint / "model.safetensors")
    edit(checkpoint / "config.json", vocab_size=513)
    write(checkpoint, tokenizer_config={"added_tokens_decoder": {"512": {"content": "[PAD]", "special": False}}})
    found = open_checkpoint(str(checkpoint))
    assert found.notes == ()
    assert Tokenizer(tokenizers.Tokenizer.from_str(found.tokenizer_json())).encode("[PAD]") == (512,)


def test_special_ids_follow_a_replaced_piece(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    write(
        tmp_path,
        tokenizer_config={
            "eos_token": "<|im_end|>",
            "added_tokens_decoder": {"300": {"content": "<|im_end|>", "special": True}},
        },
    )
    assert special_ids(tmp_path) == SpecialIds(bos=1, eos=300, unk=0)
