"""Byte-level BPE in GGUF files: llama.cpp cuts texts as the checkpoint's own tokenizer does, and Qwen answers."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import gguf
import llama_cpp
import numpy as np
import pytest
import tokenizers
import torch
from fakes import SPEC
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import spec_of, write
from test_decoder_formats import COUNT, MODELS, PROMPT, SIZES, Shaped, answer, pair
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from edge.engines import open_part
from edge.errors import CheckpointError
from edge.formats.gguf import read
from edge.formats.gguf_decoder import check_decoder
from edge.spec import VLMSpec
from edge.types import OpenOptions, PartFiles, Tokens
from edge.verify import distance
from exporters.formats import Job
from exporters.formats import gguf as format
from exporters.gguf import bpe
from exporters.gguf.doctor import diagnose
from exporters.models import decoders as families
from exporters.models.component import Component

WORDS = "What is in this picture? There's a cat, 1234 dogs; they'll sit left of the red house!\n\n  naïve 中文 straße  "
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def patterns():
    return {name: (pattern, whole) for (pattern, whole), name in bpe.PRE.items()}


def trained(pre="qwen2", vocab=320, special=SPECIAL):
    """A tokenizer as `pre` cuts texts, with Qwen's special tokens, or other ones, and one that is not special."""
    pattern, whole = patterns()[pre]
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=whole))
    if pattern in ("ByteLevel", "Digits"):
        own = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = pre_tokenizers.Digits(individual_digits=True)
        made.pre_tokenizer = own if pattern == "ByteLevel" else pre_tokenizers.Sequence([digits, own])
    else:
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    if pre == "qwen2":
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = vocab - 9 - len(special)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([WORDS] * 4, trainer)
    made.add_special_tokens(list(special))
    made.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return made


def source(tokenizer, decoder, bos=None):
    end = tokenizer.token_to_id("<|im_end|>")
    prompt = replace(SPEC.prompt, bos_id=bos, end_ids=(end,), stop_ids=(end, tokenizer.token_to_id("<|endoftext|>")))
    return SimpleNamespace(
        spec=VLMSpec(SPEC.image, prompt, decoder, None),
        tokenizer_json=tokenizer.to_str,
        sentencepiece=None,
        name="tiny",
        license="cc0-1.0",
        sha256="0" * 64,
    )


def written(name, folder, tokenizer=None, scheme="f16"):
    """transformers' model with weights as a file of half precision holds them, and the file."""
    theirs, component, _ = pair(name)
    for parameter in theirs.parameters():
        parameter.copy_(parameter.half() if parameter.ndim > 1 else parameter)
    module = component.load(Shaped(theirs.state_dict()))
    checkpoint = source(tokenizer or trained(), spec_of(module.config))
    files, *_ = write(format, component, module, scheme, folder, checkpoint=checkpoint)
    return theirs, module, files[0]


def opened(path, **more):
    return llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, verbose=False, **more)


WRITTEN = [name for name in MODELS if name != "qwen3, biases"]  # which llama.cpp has not


@pytest.mark.parametrize("name", WRITTEN)
def test_stock_llama_cpp_answers_as_transformers_does(name, tmp_path):
    theirs, _, path = written(name, tmp_path)
    expected, tokens = answer(theirs)
    llama = opened(path, logits_all=True)
    llama.eval(list(PROMPT))
    assert distance(np.array(llama.scores[len(PROMPT) - 1]), expected)["cosine"] > 0.9999
    llama.reset()
    said = list(islice(llama.generate(list(PROMPT), temp=0.0, repeat_penalty=1.0), COUNT))
    assert said == tokens
    llama.close()


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_is_read_as_the_decoder_that_was_written(name, tmp_path):
    _, module, path = written(name, tmp_path)
    config, file = module.config, read(path)
    check_decoder(file, replace(spec_of(config), rope_dim=config.rope.width))
    family = families.of_architecture(file.architecture)

    def own(key, default=None):
        return file.settings.get(f"{file.architecture}.{key}", default)

    found = family.from_gguf(own, file.tensors, config.vocab, None)
    for word in ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocab", "context", "gated", "tied"):
        assert getattr(found, word) == getattr(config, word)
    assert (found.rope, found.eps) == (config.rope, pytest.approx(config.eps))
    assert family.Decoder(found).state_dict().keys() == module.state_dict().keys()


@pytest.mark.parametrize("name", ["gemma", "gemma2"])
def test_what_a_decoder_remembers_is_kept(name, tmp_path):
    """Where layers see a window, the library has two caches."""
    _, module, path = written(name, tmp_path)
    part = PartFiles("gguf", "f16", ("decoder",), (path,), (), (), spec_of(module.config))
    decoder = open_part(part, "llamacpp", OpenOptions(threads=1, context=module.config.context))
    decoder.extend([Tokens(PROMPT)])
    kept = decoder.snapshot()
    expected = decoder.extend([Tokens((9, 8))]).copy()
    decoder.rewind(2)
    decoder.restore(kept)
    np.testing.assert_allclose(decoder.extend([Tokens((9, 8))]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2", "qwen2, tied", "qwen3"])
def test_the_file_says_what_family_it_is(name, tmp_path):
    _, module, path = written(name, tmp_path)
    fields = {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    architecture = name.partition(",")[0]
    assert fields["general.architecture"] == architecture
    assert fields[f"{architecture}.attention.key_length"] == module.config.head_dim
    assert fields[f"{architecture}.rope.freq_base"] == module.config.rope_theta
    assert ("output.weight" in tensors) != module.config.tied
    assert ("blk.1.attn_k_norm.weight" in tensors) == (architecture == "qwen3")
    # The rows of queries stay in the order of halves: these architectures' rotation needs no other.
    queries = module.state_dict()["layers.0.qkv_proj.weight"][: module.config.heads * module.config.head_dim]
    stored = tensors["blk.0.attn_q.weight"]
    np.testing.assert_array_equal(gguf.dequantize(stored.data, stored.tensor_type), queries)


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_a_rounded_file_computes_what_its_module_does(name, tmp_path):
    theirs, module, path = written(name, tmp_path, scheme="q8_0")
    llama = opened(path, logits_all=True)
    llama.eval(list(PROMPT))
    with torch.inference_mode():
        theirs.load_state_dict({**theirs.state_dict(), "lm_head.weight": module.lm_head.weight}, strict=True)
    assert distance(np.array(llama.scores[len(PROMPT) - 1]), answer(theirs)[0])["cosine"] > 0.999
    llama.close()


LINEAR, UNSCALED = (
    {"rope_type": "linear", "factor": 2.0},
    ("qwen2", "qwen3", "phi", "phi3", "stablelm", "gemma", "gemma2"),
)


@pytest.mark.parametrize(
    ("name", "said", "match"),
    [
        ("qwen3", {"attention_bias": True}, "llama.cpp's 'qwen3' has no attention_bias"),
        ("gemma", {"attention_bias": True}, "llama.cpp's 'gemma' has no attention_bias"),
        ("gemma2", {"attention_bias": True}, "llama.cpp's 'gemma2' has no attention_bias"),
        ("gemma2", {"final_logit_softcapping": None}, "'gemma2' has soft caps"),
        ("gemma2", {"num_hidden_layers": 46}, "'gemma2' of 46 layers by a number of its own"),
        *((name, {"rope_scaling": LINEAR}, f"{name}2?' has no rope_scaling") for name in UNSCALED),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused_before_the_work(name, said, match):
    family = families.find(name)
    config = family.from_config({**SIZES, **said})
    component = Component("decoder", lambda: family.Decoder(config), {})
    with pytest.raises(CheckpointError, match=match):
        format.check(Job(component, "f16", Path(), source(trained(), spec_of(config))))


@pytest.fixture(scope="module", params=sorted(bpe.PRE.values()))
def vocabulary(request, tmp_path_factory):
    """A tokenizer, and llama.cpp's of the file that was written of it."""
    folder, made = tmp_path_factory.mktemp("vocabulary"), trained(request.param)
    writer = gguf.GGUFWriter(folder / "a.gguf", "qwen2")
    texts = bpe.add(writer, made.to_str(), SIZES["vocab_size"])
    assert len(texts) == SIZES["vocab_size"]
    assert texts[-1] == f"[PAD{SIZES['vocab_size'] - 1}]"
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made, opened(folder / "a.gguf", vocab_only=True)


@given(text=st.text(st.one_of(st.sampled_from(WORDS + "'’\r\t0９é"), st.characters(codec="utf-8")), max_size=40))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_llama_cpp_cuts_texts_as_the_tokenizer_does(vocabulary, text):
    made, llama = vocabulary
    text = unicodedata.normalize("NFC", text)
    if any(unicodedata.category(c) in ("Cn", "Co") for c in text) or "\0" in text:
        return  # tables of Unicode differ in age, and C's strings end at a zero
    assert (
        llama.tokenize(text.encode(), add_bos=False, special=False) == made.encode(text, add_special_tokens=False).ids
    )


def test_special_tokens_are_known_to_llama_cpp(vocabulary):
    made, llama = vocabulary
    text = "<|im_start|>What<tool_call> is<|im_end|>"
    found = llama.tokenize(text.encode(), add_bos=False, special=True)
    assert found == made.encode(text, add_special_tokens=False).ids
    assert {made.token_to_id(t) for t in ("<|im_start|>", "<tool_call>", "<|im_end|>")} <= set(found)


CHANGES = {
    "WordPiece": (lambda d: d["model"].update(type="WordPiece"), "its model is 'WordPiece'"),
    "dropout": (lambda d: d["model"].update(dropout=0.1), "dropout 0.1"),
    "prefix": (lambda d: d["model"].update(continuing_subword_prefix="##"), "continuing_subword_prefix '##'"),
    "bytes": (lambda d: d["model"].update(byte_fallback=True), "byte_fallback True"),
    "whole words": (lambda d: d["model"].update(ignore_merges=True), "ignore_merges true"),
    "pattern": (lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\w+"}), r"'\\\\w\+'"),
    "text": (lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"String": " "}), "cuts by None"),
    "behaviour": (lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"), "cuts by None"),
    "space": (lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "add_prefix_space"),
    "none": (lambda d: d.update(pre_tokenizer=None), "pre-tokenizer is None"),
    "metaspace": (lambda d: d.update(pre_tokenizer={"type": "Metaspace"}), "pre-tokenizer is Metaspace"),
    "strip": (lambda d: d["added_tokens"][0].update(lstrip=True), "is lstrip"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tokenizer_that_llama_cpp_lacks_is_refused_by_name(change, tmp_path):
    data = json.loads(trained().to_str())
    alter, match = CHANGES[change]
    alter(data)
    with pytest.raises(CheckpointError, match=match) as error:
        bpe.add(gguf.GGUFWriter(tmp_path / "a.gguf", "qwen2"), json.dumps(data), SIZES["vocab_size"])
    assert "qwen2" in error.value.hint


def test_merges_of_older_files(tmp_path):
    data = json.loads(trained().to_str())
    writers = [gguf.GGUFWriter(tmp_path / name, "qwen2") for name in ("new", "old")]
    bpe.add(writers[0], json.dumps(data), SIZES["vocab_size"])
    data["model"]["merges"] = [" ".join(merge) for merge in data["model"]["merges"]]
    bpe.add(writers[1], json.dumps(data), SIZES["vocab_size"])
    new, old = (writer.kv_data[0]["tokenizer.ggml.merges"].value for writer in writers)
    assert new == old and len(new) > 10


def test_the_doctor_knows_such_a_file(tmp_path):
    _, _, path = written("qwen2", tmp_path)
    rows = {row.check: row for row in diagnose([path]).rows}
    for check in ("counts", "vocabulary", "special tokens"):
        assert rows[check].status == "ok", rows[check]


@pytest.mark.parametrize(
    ("lost", "found"),
    [("tokenizer.ggml.merges", "no merges"), ("tokenizer.ggml.pre", "no tokenizer.ggml.pre")],
)
def test_the_doctor_finds_what_such_a_file_lacks(lost, found, tmp_path):
    _, _, path = written("qwen2", tmp_path)
    path.write_bytes(path.read_bytes().replace(lost.encode(), lost[:-1].encode() + b"_"))
    (row,) = (row for row in diagnose([path]).rows if row.check == "vocabulary")
    assert row.status == "wrong" and found in row.found, row
