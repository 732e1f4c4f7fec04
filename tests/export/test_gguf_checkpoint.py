"""Pairs of GGUF files as checkpoints: what is read from them is what they were made from."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import gguf
import llama_cpp.llama_cpp as llama_cpp
import numpy as np
import pytest
import torch
from exported import Exports, golden_of, manifest_of
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import write
from tokenizers import Tokenizer as Library

from edge.errors import CheckpointError, EdgeError, UsageError
from edge.inputs.tokenizer import Tokenizer
from exporters import pipeline, standin
from exporters.export import ExportRequest, export
from exporters.formats import gguf as format
from exporters.gguf import vocabulary
from exporters.models.component import Component
from exporters.models.decoders import llama
from exporters.models.vision.clip import TowerConfig
from exporters.sources.checkpoint import open_checkpoint
from exporters.sources.sentencepiece import SentencePiece
from exporters.standin.random_weights import Shape

TOWER = TowerConfig(image_size=336, patch_size=14, hidden=64, layers=3, heads=1, ffn=96)
DECODER = llama.Config(layers=2, hidden=256, ffn=512, heads=4, kv_heads=2, head_dim=64, vocab=512, context=1024)
PROJECTORS = ("ldpnetv2", "ldpnet", "mlp2x_gelu")
ROLES = ("vision", "projector", "decoder")


def made(folder, projector="ldpnetv2", **kind):
    standin.write(folder, Shape(TOWER, DECODER), projector=projector, **kind)
    return open_checkpoint(str(folder))


def write_pair(checkpoint, folder, scheme="f16", mmproj="f16", **options):
    """The two files, and the modules as they say."""
    folder.mkdir(exist_ok=True)
    vision, decoder = pipeline.components(checkpoint)
    modules, files = [], []
    for component, kind in ((decoder, scheme), (dataclasses.replace(vision, role="mmproj"), mmproj)):
        modules.append(component.load(checkpoint.weights))
        written = write(
            format, component, modules[-1], kind, folder, lambda done: None, checkpoint=checkpoint, options=options
        )
        files.append(written.files[0])
    return files, modules


def reopen(files, **options):
    return open_checkpoint(str(files[0]), mmproj=files[1], **options)


def rewritten(path, *, drop=(), change=None, rename=lambda name: name, tensor=lambda name, data: data):
    """The file again, with other settings, names or numbers."""
    reader = gguf.GGUFReader(path)
    out = path.with_name("again-" + path.name)
    writer = gguf.GGUFWriter(
        out, (change or {}).get("general.architecture", reader.fields["general.architecture"].contents())
    )
    for key, field in reader.fields.items():
        if (
            not key.startswith("GGUF.")
            and key != "general.architecture"
            and key not in drop
            and key not in (change or {})
        ):
            kind = field.types[0]
            writer.add_key_value(
                key, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            )
    for key, value in (change or {}).items():
        if key != "general.architecture":
            kind = gguf.GGUFValueType.UINT32 if key.endswith("_token_id") else gguf.GGUFValueType.get_type(value)
            writer.add_key_value(
                key, value, kind, gguf.GGUFValueType.get_type(value[0]) if kind == gguf.GGUFValueType.ARRAY else None
            )
    for found in reader.tensors:
        if rename(found.name) is not None:
            writer.add_tensor(rename(found.name), tensor(found.name, found.data), raw_dtype=found.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def swapped(name):
    """As the legacy converter spells it."""
    return re.sub("ffn_(up|down)", lambda m: {"up": "ffn_down", "down": "ffn_up"}[m[1]], name)


TOLD = [f"clip.vision.{key}" for key in ("feature_layer", "image_mean", "image_std", "projection_dim")]
UNSAID = ["tokenizer.chat_template", "general.license", "general.type", "llama.attention.head_count_kv"]


def legacy(files):
    """What the converters of 2024 leave out and put elsewhere."""
    own = [f"llama.{key}" for key in ("attention.key_length", "attention.value_length", "rope.freq_base", "vocab_size")]
    kept = [key for key in UNSAID if "head_count_kv" not in key]  # these heads are shared
    return rewritten(files[0], drop=[*own, *kept]), rewritten(files[1], drop=[*TOLD, "general.type"], rename=swapped)


SPOILT = [
    (0, "blk.1.attn_v.weight"),  # of blocks: their scale
    (0, "token_embd.weight"),
    (0, "output_norm.weight"),
    (1, "v.blk.0.ln1.weight"),
    (1, "v.position_embd.weight"),
    (1, "mm.model.mlp.0.weight"),
]


@pytest.mark.parametrize(
    ("where", "name", "scheme", "value"),
    [
        (*spoilt, scheme, (np.nan, np.inf, -np.inf)[(row + column) % 3])
        for row, spoilt in enumerate(SPOILT)
        for column, scheme in enumerate(("f16", "q8_0", "q4_0"))
    ],
)
def test_what_is_not_finite_in_a_file_is_named(tmp_path, where, name, scheme, value):
    """Each tensor in each scheme, and each with each of the values."""
    files, _ = write_pair(made(tmp_path / "checkpoint"), tmp_path, scheme, "q8_0" if scheme != "f16" else "f16")
    found = next(tensor for tensor in gguf.GGUFReader(files[where]).tensors if tensor.name == name)
    wide = found.tensor_type == gguf.GGMLQuantizationType.F32
    scale = 208 if found.tensor_type == gguf.GGMLQuantizationType.Q6_K else 0  # where in the first block
    with files[where].open("r+b") as file:
        file.seek(found.data_offset + scale)
        file.write((np.float32 if wide else np.float16)(value).tobytes())
    request = ExportRequest(str(files[0]), tmp_path / "out", mmproj=files[1])
    with pytest.raises(CheckpointError, match=rf"\n  {re.escape(name)}: .* of \d+, the first at \[0") as caught:
        export(request, lambda stage, done: None)
    assert ("infinite" if np.isinf(value) else "NaN") in caught.value.message
    assert not (tmp_path / "out").exists()


def states(checkpoint):
    return {role: checkpoint.components[role].load(checkpoint.weights).state_dict() for role in ROLES}


def assert_same(found, expected):
    for role in ROLES:
        assert found[role].keys() == expected[role].keys()
        for name, tensor in expected[role].items():
            assert torch.equal(found[role][name], tensor), (role, name)


def assert_stored(checkpoint, decoder, encoder):
    """It holds what was written of these modules."""
    found = states(checkpoint)
    both = {"tower." + name: tensor for name, tensor in found["vision"].items()}
    both |= {"projector." + name: tensor for name, tensor in found["projector"].items()}
    for own, module in ((found["decoder"], decoder), (both, encoder)):
        assert own.keys() == module.state_dict().keys()
        for name, tensor in module.state_dict().items():
            assert torch.equal(own[name], tensor), name


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return made(tmp_path_factory.mktemp("checkpoints") / "Tiny VLM")


@pytest.fixture(scope="module")
def pair(original, tmp_path_factory):
    return write_pair(original, tmp_path_factory.mktemp("pair"))[0]


@pytest.mark.parametrize("projector", PROJECTORS)
@pytest.mark.parametrize("kind", ["ours", "legacy"])
def test_a_pair_is_the_checkpoint_that_it_was_made_from(projector, kind, tmp_path):
    checkpoint = made(tmp_path / "Tiny VLM", projector)
    files, _ = write_pair(checkpoint, tmp_path / "pair")
    found = reopen(legacy(files) if kind == "legacy" else files)
    assert_same(states(found), states(checkpoint))
    assert found.spec == checkpoint.spec
    assert found.name == checkpoint.name
    assert found.license == ("unknown" if kind == "legacy" else checkpoint.license)
    assert found.tokenizer_json() == checkpoint.tokenizer_json()
    assert found.components["decoder"].skeleton().config == checkpoint.components["decoder"].skeleton().config


def test_positions_that_were_moved_for_faulty_builds_are_put_back(original, tmp_path):
    files, _ = write_pair(original, tmp_path / "moved", mtmd_position_workaround=True)
    plain, _ = write_pair(original, tmp_path / "plain")
    found = reopen(files)
    assert_same(states(found), states(original))
    stored = (gguf.GGUFReader(pair[1]).tensors for pair in (files, plain))
    moved, kept = (next(t.data for t in tensors if t.name == "v.position_embd.weight") for tensors in stored)
    np.testing.assert_array_equal(moved, np.roll(kept, -1, 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_wider_files(tmp_path, dtype):
    """bf16 as it is; a checkpoint of float32 as its f16 file says."""
    checkpoint = made(tmp_path / "checkpoint", dtype=dtype)
    files, (decoder, encoder) = write_pair(checkpoint, tmp_path / "pair", "bf16" if dtype == torch.bfloat16 else "f16")
    assert_stored(reopen(files), decoder, encoder)


@pytest.mark.parametrize("scheme", format.SCHEMES["decoder"])
def test_rounded_files_are_what_they_say(original, scheme, tmp_path):
    files, (decoder, encoder) = write_pair(original, tmp_path, scheme, "q8_0")
    assert_stored(reopen(files), decoder, encoder)


UNUSUAL = {
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tied": True},
    "shared heads and an odd width": {"hidden": 72, "ffn": 100, "heads": 3, "kv_heads": 1, "head_dim": 24},
    "scaled positions": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_theta": 500000.0, "eps": 1e-5},
}


@pytest.mark.parametrize("changes", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_unusual_decoders(original, changes, tmp_path):
    config = dataclasses.replace(DECODER, **changes)
    torch.manual_seed(3)
    module = llama.Decoder(config).eval().requires_grad_(False).half().float()
    if config.tied:
        module.lm_head.weight.copy_(module.embed_tokens.weight)
    component = Component("decoder", lambda: llama.Decoder(config), {})
    decoder = write(format, component, module, "f16", tmp_path, lambda done: None, checkpoint=original).files[0]
    sizes = {name: getattr(config, name) for name in ("hidden", "ffn", "heads", "kv_heads", "head_dim")}
    standin.write(tmp_path / "eye", Shape(TOWER, dataclasses.replace(DECODER, **sizes)))
    mmproj = write_pair(open_checkpoint(str(tmp_path / "eye")), tmp_path / "mmproj")[0][1]
    opened = reopen([decoder, mmproj])
    found = states(opened)["decoder"]
    assert found.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(found[name], tensor), name
    read = opened.components["decoder"].skeleton().config
    assert dataclasses.replace(read, rope_scaling=config.rope_scaling) == config
    torch.testing.assert_close(read.rope.inv_freq(), config.rope.inv_freq(), rtol=1e-6, atol=0)


def test_which_layer_is_read(pair):
    """As `feature_layer` says; else all that are there, but not the last of a whole tower of the published width."""

    def run(drop=("clip.vision.feature_layer",), **change):
        file = rewritten(pair[1], drop=drop, change={f"clip.vision.{key}": value for key, value in change.items()})
        return open_checkpoint(str(pair[0]), mmproj=file).components["vision"].skeleton().config.run_layers

    assert run() == 2
    assert run(block_count=3) == 2  # one more than there are
    assert run(block_count=1) == 1
    assert run(drop=(), feature_layer=[1]) == 1
    with pytest.raises(CheckpointError, match=r"of the layers \[1, 2\], of 2"):
        run(feature_layer=[1, 2])
    with pytest.raises(CheckpointError, match=r"of the layers \[3\], of 2"):
        run(feature_layer=[3])


def test_a_whole_tower_leaves_its_last_layer_out(pair, monkeypatch):
    from exporters.checkpoints import gguf as dialect

    monkeypatch.setitem(dialect.DEPTHS, TOWER.hidden, 2)
    whole = rewritten(pair[1], drop=["clip.vision.feature_layer"])
    found = open_checkpoint(str(pair[0]), mmproj=whole)
    assert found.components["vision"].skeleton().config.run_layers == 1
    assert "v.blk.1.ln1.weight" in found.weights  # there, and not used


def test_the_tokenizer_with_added_tokens(tmp_path):
    folder = tmp_path / "checkpoint"
    standin.write(folder, Shape(TOWER, DECODER))
    (folder / "tokenizer.model").write_bytes(standin.sentence_pieces(500))
    declared = {
        "500": {"content": "<pad>", "special": True},
        "501": {"content": "<tool>", "special": False, "normalized": False},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": declared}))
    checkpoint = open_checkpoint(str(folder))
    found = reopen(write_pair(checkpoint, tmp_path / "pair")[0])
    assert found.tokenizer_json() == checkpoint.tokenizer_json()
    assert found.sentencepiece.pieces(512) == checkpoint.sentencepiece.pieces(512)


@pytest.fixture(scope="module")
def tokenizers(original, pair, tmp_path_factory):
    """The checkpoint's, and that of its GGUF file, of whose vocabulary the tokenizer.json is made."""
    folder = tmp_path_factory.mktemp("tokenizers")
    opened = []
    for name, checkpoint in (("original", original), ("pair", reopen(legacy(pair)))):
        (folder / name).write_text(checkpoint.tokenizer_json(), encoding="utf-8")
        opened.append(Tokenizer.open(folder / name))
    return opened


@settings(max_examples=120, deadline=None)
@given(text=st.text(max_size=60) | st.lists(st.sampled_from(standin.TEXT.split(" ")), max_size=9).map(" ".join))
def test_any_text_is_cut_alike(tokenizers, text):
    ours, theirs = (tokenizer.encode(text) for tokenizer in tokenizers)
    assert ours == theirs


# Whole exports


def test_the_bundle_is_the_one_that_the_checkpoint_gives(exports: Exports, tmp_path):
    source = exports.bundle(format="gguf", schemes=("f16",))
    files = [next(source.glob(f"{start}*-F16.gguf")) for start in ("checkpoint", "mmproj")]
    mmproj = rewritten(files[1], drop=TOLD, rename=swapped)
    done = export(ExportRequest(str(files[0]), tmp_path / "out", mmproj=mmproj, threads=1), lambda stage, done: None)
    (files[1].with_name("again-" + files[1].name)).unlink()
    direct = exports.bundle()
    found, expected = golden_of(done.path), golden_of(direct)
    for side in ("fp32", "stored"):
        ours, theirs = getattr(found, side), getattr(expected, side)
        np.testing.assert_allclose(ours.image_embeds, theirs.image_embeds, atol=1e-6)
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-5)
        assert ours.tokens.tolist() == theirs.tokens.tolist()
    assert (done.path / "tokenizer.json").read_bytes() == (direct / "tokenizer.json").read_bytes()
    ours, theirs = manifest_of(done.path), manifest_of(direct)
    for section in ("image", "prompt", "decoder", "recipe"):
        assert ours[section] == theirs[section]
    assert [part["scheme"] for part in ours["parts"]] == ["w8a8", "w4"]
    where = str(source.parent)
    assert where not in json.dumps(ours)


def test_a_shorter_context(pair):
    assert reopen(pair, context=512).spec.decoder.context == 512
    with pytest.raises(UsageError, match="a context of 4096"):
        reopen(pair, context=4096)


# What is refused


def vectors(name):
    return None if name.startswith("v.") else name


DECODERS = {
    "another architecture": ({"change": {"general.architecture": "falcon"}}, "'falcon', which is not read"),
    "no width": ({"drop": ["llama.embedding_length"]}, r"does not set llama\.embedding_length"),
    "no heads": ({"change": {"llama.attention.head_count": 0}}, "does not describe a decoder"),
    "absurd layers": ({"change": {"llama.block_count": 1 << 30}}, "layers is 1073741824"),
    "absurd heads": ({"change": {"llama.attention.key_length": 1 << 30}}, "head_dim is 1073741824"),
    "heads as a list": ({"change": {"llama.attention.head_count_kv": [2, 2]}}, r"kv_heads is \[2, 2\]"),
    "half rotated": ({"change": {"llama.rope.dimension_count": 32}}, "cannot be built"),
    "yarn": ({"change": {"llama.rope.scaling.type": "yarn"}}, "positions by 'yarn'"),
    "more layers": ({"change": {"llama.block_count": 3}}, r"missing: blk\.2\.attn_norm\.weight"),
    "fewer layers": ({"change": {"llama.block_count": 1}}, r"does not use:\s+blk\.1\.attn_norm"),
    "wider": ({"change": {"llama.feed_forward_length": 513}}, r"wrong shape: blk\.0\.ffn_gate\.weight \[512, 256\]"),
    "no table": ({"rename": lambda n: None if n == "token_embd.weight" else n}, "does not describe a decoder"),
    "another tokenizer": ({"change": {"tokenizer.ggml.model": "gpt2"}}, "'gpt2', expected 'llama'"),
    "too few scores": ({"change": {"tokenizer.ggml.scores": [0.0]}}, r"damaged vocabulary: \[512, 1, 512\]"),
    "no such kind of piece": ({"change": {"tokenizer.ggml.token_type": [9] * 512}}, "damaged vocabulary"),
    "pieces that are no list": ({"change": {"tokenizer.ggml.tokens": "a"}}, "damaged vocabulary"),
    "twice the same piece": ({"change": {"tokenizer.ggml.tokens": ["a"] * 512}}, "twice"),
    "an end beyond": ({"change": {"tokenizer.ggml.eos_token_id": 512}}, r"the eos token is 512, of 512 tokens"),
    "one of several": ({"change": {"split.count": 3}}, "one of several files"),
}
ENCODERS = {
    "another architecture": ({"change": {"general.architecture": "llama4"}}, "'llama4', and no vision tower"),
    "no vision": ({"change": {"clip.has_vision_encoder": False}}, "holds no CLIP vision tower"),
    "an unknown projector": ({"change": {"clip.projector_type": "resampler"}}, "'resampler', which is not read"),
    "tiles": ({"change": {"clip.vision.mm_patch_merge_type": "spatial_unpad"}}, "tiles"),
    "no image size": ({"drop": ["clip.vision.image_size"]}, r"does not set clip\.vision\.image_size"),
    "absurd patches": ({"change": {"clip.vision.patch_size": 1 << 30}}, "patch_size is 1073741824"),
    "patches beyond the picture": ({"change": {"clip.vision.patch_size": 400}}, "cannot be built"),
    "no tower": ({"rename": vectors}, "layers"),
    "a mean of two": ({"change": {"clip.vision.image_mean": [0.5, 0.5]}}, r"damaged clip\.vision\.image_mean"),
    "an std of 0": ({"change": {"clip.vision.image_std": [0.0, 0.5, 0.5]}}, "image_std"),
    "an unknown tensor": ({"rename": lambda n: n.replace("pre_ln.bias", "extra")}, r"missing: v\.pre_ln\.bias"),
    "no projector": ({"rename": lambda n: None if n.startswith("mm.") else n}, r"missing: mm\.model\.mlp\.0\.weight"),
}


@pytest.mark.parametrize(("how", "message"), DECODERS.values(), ids=DECODERS.keys())
def test_a_decoder_that_is_refused(pair, how, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        reopen([rewritten(pair[0], **how), pair[1]])
    assert caught.value.hint


@pytest.mark.parametrize(("how", "message"), ENCODERS.values(), ids=ENCODERS.keys())
def test_an_mmproj_that_is_refused(pair, how, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        reopen([pair[0], rewritten(pair[1], **how)])
    assert caught.value.hint


def test_unknown_tensors_are_named(pair):
    extra = rewritten(pair[1], rename=lambda name: name.replace("v.pre_ln.bias", "model.image_newline"))
    with pytest.raises(CheckpointError, match=r"missing: v\.pre_ln\.bias"):
        reopen([pair[0], extra])
    more = rewritten(pair[0], rename=lambda name: name.replace("blk.1.", "blk.7."), change={"llama.block_count": 1})
    with pytest.raises(CheckpointError, match=r"does not use:[\s\S]*blk\.7\.attn_q\.weight"):
        reopen([more, pair[1]])


def test_calls_that_cannot_be(original, pair, tmp_path):
    for call, kind, message, hint in (
        ((pair[0], None), UsageError, "holds a decoder only", "--mmproj FILE"),
        ((pair[1], pair[0]), CheckpointError, "is the mmproj, and", f"edge export {pair[0]} --mmproj {pair[1]}"),
        ((pair[0], pair[0]), CheckpointError, "no vision tower", "--mmproj FILE"),
        ((tmp_path / "no.gguf", pair[1]), CheckpointError, "no such file", "spelled"),
        ((pair[0], tmp_path / "no.gguf"), CheckpointError, "no such file", "spelled"),
        ((original.folder, pair[1]), UsageError, "goes with a decoder's GGUF file", "edge export MODEL.gguf"),
    ):
        with pytest.raises(kind, match=message) as caught:
            open_checkpoint(str(call[0]), mmproj=call[1])
        assert hint in caught.value.hint
    with pytest.raises(UsageError, match="--vision-tower"):
        reopen(pair, vision_tower=tmp_path)


def test_files_of_two_models(pair, tmp_path):
    standin.write(tmp_path / "other", standin.SHAPES["tiny"])
    other, _ = write_pair(open_checkpoint(str(tmp_path / "other")), tmp_path / "pair")
    with pytest.raises(CheckpointError, match=r"do not belong together: .* is for a decoder 64 wide, .* 256 wide"):
        reopen([pair[0], other[1]])


@settings(max_examples=60, deadline=None)
@given(which=st.sampled_from((0, 1)), at=st.integers(0, 4000), value=st.integers(0, 255), cut=st.booleans())
def test_damaged_files_are_read_or_refused(pair, tmp_path_factory, which, at, value, cut):
    data = bytearray(Path(pair[which]).read_bytes())
    at = min(at, len(data) - 1)
    data[at] = value
    folder = tmp_path_factory.mktemp("damaged")
    files = list(pair)
    files[which] = folder / "damaged.gguf"
    files[which].write_bytes(data[: at if cut else None])
    try:
        found = reopen(files)
        found.tokenizer_json()
    except EdgeError:
        return
    finally:
        files[which].unlink()
    assert not cut


def test_the_name_is_no_path(pair):
    for told, name in (
        ("../../etc/x", "again-Tiny-VLM-F16"),
        ("", "again-Tiny-VLM-F16"),
        ("My Model 1.7B", "My Model 1.7B"),
    ):
        assert reopen([rewritten(pair[0], change={"general.name": told}), pair[1]]).name == name


def test_the_hash_is_of_both_files(pair):
    first = reopen(pair).sha256
    assert reopen([pair[0], rewritten(pair[1], change={"general.description": "x"})]).sha256 != first
    assert reopen(pair).sha256 == first


def test_what_a_folder_holds_is_none_of_it(original):
    assert SentencePiece.open(original.folder.parent) is None


# Where a conversation begins and ends


def llama_cpp_ends(path):
    """At which ids llama.cpp ends an answer; asked of the file's vocabulary."""
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    assert model
    pieces = llama_cpp.llama_model_get_vocab(model)
    found = {i for i in range(DECODER.vocab) if llama_cpp.llama_vocab_is_eog(pieces, i)}
    begins = llama_cpp.llama_vocab_bos(pieces) if llama_cpp.llama_vocab_get_add_bos(pieces) else None
    llama_cpp.llama_model_free(model)
    return found, begins


ENDS = {
    "usual": ({}, {}, {2}),
    "another end": ({"eos": 300}, {}, {300, 2}),  # "</s>" is an end by its name
    "an end of turn": ({"eot": 301}, {}, {2, 301}),
    "an end of message": ({"eot": 301, "eom": 302}, {}, {2, 301, 302}),
    "ends of infilling": ({"fim_pad": 300, "fim_rep": 301, "fim_sep": 302, "fim_pre": 303}, {}, {2, 300, 301, 302}),
    **{text: ({}, {300: text}, {2, 300}) for text in vocabulary._END_TEXTS[1:]},
}


@pytest.mark.parametrize(("told", "names", "wanted"), ENDS.values(), ids=ENDS.keys())
def test_an_answer_ends_where_llama_cpp_ends_it(pair, told, names, wanted):
    texts = gguf.GGUFReader(pair[0]).fields["tokenizer.ggml.tokens"].contents()
    texts = [names.get(i, text) for i, text in enumerate(texts)]
    change = {"tokenizer.ggml.tokens": texts, **{f"tokenizer.ggml.{name}_token_id": i for name, i in told.items()}}
    file = rewritten(pair[0], change=change)
    found, _ = llama_cpp_ends(file)
    stops = reopen([file, pair[1]]).spec.prompt.stop_ids
    assert set(stops) == found == wanted
    assert stops[0] == told.get("eos", 2)


@pytest.mark.parametrize("told", [True, False, None])
@pytest.mark.parametrize("bos", [1, 300, None])
def test_a_text_begins_as_llama_cpp_begins_it(pair, told, bos):
    keys = {"tokenizer.ggml.add_bos_token": told, "tokenizer.ggml.bos_token_id": bos}
    change = {key: value for key, value in keys.items() if value is not None}
    file = rewritten(pair[0], change=change, drop=[key for key in keys if key not in change])
    assert reopen([file, pair[1]]).spec.prompt.bos_id == llama_cpp_ends(file)[1]


@pytest.mark.parametrize("key", ["add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces"])
def test_a_setting_that_is_no_truth_value_is_refused(pair, key):
    with pytest.raises(CheckpointError, match=rf"tokenizer\.ggml\.{key} is 1"):
        reopen([rewritten(pair[0], change={f"tokenizer.ggml.{key}": 1}), pair[1]])


def test_an_end_that_the_tokenizer_would_add_is_told(pair):
    found = reopen([rewritten(pair[0], change={"tokenizer.ggml.add_eos_token": True}), pair[1]])
    assert found.notes == ("llama.cpp ends a text with the token 2: a prompt leaves it out",)
    assert reopen(pair).notes == ()


def test_every_end_and_replaced_piece_reaches_the_file(original, tmp_path):
    folder = shutil.copytree(original.folder, tmp_path / "checkpoint")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 300, 301]}')
    listed = {
        "300": {"content": "<|turn_end|>", "special": True},
        "301": {"content": "<stop>", "special": False},
        "302": {"content": "<seg>", "special": False},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": listed}))
    checkpoint = open_checkpoint(str(folder))
    files, _ = write_pair(checkpoint, tmp_path / "pair")
    assert checkpoint.spec.prompt.stop_ids == (2, 300, 301)
    assert llama_cpp_ends(files[0])[0] == {2, 300, 301}
    again = reopen(files)
    assert again.spec.prompt.stop_ids == (2, 300, 301)
    ours, theirs = (Library.from_str(found.tokenizer_json()) for found in (checkpoint, again))
    for text in ("a chat<seg> b <stop>USER", "<seg>", "x <|turn_end|> y"):
        for spelled in (True, False):
            ours.encode_special_tokens = theirs.encode_special_tokens = spelled
            assert ours.encode(text).ids == theirs.encode(text).ids, text
    assert [theirs.id_to_token(i) for i in (300, 301, 302)] == ["<|turn_end|>", "<stop>", "<seg>"]
