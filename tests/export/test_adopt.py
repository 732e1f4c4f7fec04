"""`edge export MODEL.gguf --vision CKPT`: a published decoder is kept as it is, what sees is proven, and what does not
belong together is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import gguf
import jsonschema
import numpy as np
import pytest
from commands import call
from conftest import REPOSITORY

from edge.bundle.manifest import Bundle
from edge.errors import CheckpointError, EngineError, UsageError
from edge.inference.session import load
from edge.verify import verify
from exporters import adopt, standin
from exporters.export import ExportRequest, export
from exporters.gguf.adopted import Decoder
from exporters.models.decoders import llama
from exporters.models.vision.clip import TowerConfig
from exporters.standin.random_weights import Shape
from exporters.verify_checkpoint import verify_against

TOWER = TowerConfig(image_size=56, patch_size=14, hidden=32, layers=2, heads=2, ffn=64)
DECODER = llama.Config(layers=2, hidden=64, ffn=96, heads=4, kv_heads=2, head_dim=16, vocab=512, context=512)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adopt") / "tiny"
    standin.write(folder, Shape(TOWER, DECODER), projector="mlp2x_gelu")
    return folder


@pytest.fixture(scope="module")
def published(checkpoint, tmp_path_factory):
    """What somebody made of the checkpoint's decoder, and a bundle of ours that tells what it answers."""
    out = tmp_path_factory.mktemp("published") / "out"
    request = ExportRequest(str(checkpoint), out, recipe="onnx-w8a8-gguf-q4_0", schemes=("decoder=q8_0",), threads=1)
    export(request, lambda *_: None)
    return next(out.glob("*.gguf"))


def adopted(model, checkpoint, out, **more):
    request = ExportRequest(str(model), out, vision=str(checkpoint), threads=1, **more)
    return adopt.export(request, lambda *_: None)


def copied(model, out, architecture=None, *, drop=(), change=None):
    """Another file of the same tensors, by the package of llama.cpp's own."""
    reader = gguf.GGUFReader(model)
    own = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, architecture or own)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = (change or {}).get(key, field.contents())
        name = key.replace(f"{own}.", f"{architecture}.", 1) if architecture and key.startswith(f"{own}.") else key
        array = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(name, value, field.types[0], field.types[1] if array else None)
    for tensor in reader.tensors:
        if tensor.name not in drop:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_decoder_is_kept_and_the_vision_part_is_proven(checkpoint, published, tmp_path):
    done = adopted(published, checkpoint, tmp_path / "out")
    assert any("kept byte for byte, and not proven" in note for note in done.notes)
    bundle = Bundle.open(done.path)
    vision, decoder = bundle.manifest.parts
    assert sha256(bundle.file(decoder.files[0])) == sha256(published) == decoder.files[0].sha256
    assert decoder.files[0].path == published.name
    assert (decoder.adopted, decoder.error, decoder.scheme) == (True, {}, "q8_0")
    assert not vision.adopted and vision.error["vision.stored.cosine"] > 0.9999 and vision.scheme == "w8a8"
    schema = json.loads((REPOSITORY / "edge" / "bundle" / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(json.loads((done.path / "manifest.json").read_text()))
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    said = []
    for path in (done.path, published.parent):  # the latter is the same decoder, exported
        with load(path, threads=1) as session:
            session.ask(picture, "What is this?", max_tokens=8)
            said.append(session.last.token_ids)
    assert said[0] == said[1]


def test_what_is_not_proven_is_said(checkpoint, published, tmp_path):
    out = tmp_path / "out"
    how = ("--recipe", "gguf-q4_0", "--scheme", "vision=fp32")
    made = call("export", published, "--vision", checkpoint, "-o", out, "-t", 1, *how)
    assert made.code == 0, made.err
    assert sorted(path.suffix for path in out.glob("*.gguf")) == [
        ".gguf",
        ".gguf",
    ]  # with an mmproj for llama.cpp's CLI
    assert "as it was published: kept byte for byte, and not proven" in made.err
    report = verify(Bundle.open(out), threads=1)
    assert report.ok and report.adopted == ("decoder",)
    assert [(row.stage, row.against) for row in report.rows if row.stage in ("vision", "prefill", "tokens")] == [
        ("vision", "stored"),
        ("vision", "fp32"),
        ("prefill", "recorded"),
        ("tokens", "recorded"),
    ]
    assert "the decoder is kept as it was published: not proven" in call("verify", out, "-t", 1).err
    assert call("verify", out, "-t", 1, "--json").json["adopted"] == ["decoder"]
    shown = call("inspect", out).out
    assert "adopted" in shown and "not proven" in shown
    against = verify_against(Bundle.open(out), str(checkpoint), None, 1)
    assert against.ok and [row.stage for row in against.rows if row.against == "checkpoint"] == ["prompt", "vision"]


def test_an_architecture_that_no_export_writes(checkpoint, published, tmp_path):
    """InternLM 2 is Llama's layers, to llama.cpp."""
    model = copied(published, tmp_path / "internlm.gguf", "internlm2")
    done = adopted(model, checkpoint, tmp_path / "out")
    assert done.report.ok
    assert Bundle.open(done.path).manifest.spec.decoder.family == "internlm2"
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    with load(done.path, threads=1) as session:
        session.ask(picture, "What is this?", max_tokens=4)
        assert session.last.generated_tokens == 4 or session.last.stop_reason != "length"


def other(model, tmp_path, **how):
    return copied(model, tmp_path / "other.gguf", **how)


def tokens_of(model):
    return list(gguf.GGUFReader(model).fields["tokenizer.ggml.tokens"].contents())


def swapped(model):
    tokens = tokens_of(model)
    tokens[300], tokens[301] = tokens[301], tokens[300]
    return tokens


def cut(model, out):
    data = model.read_bytes()
    out.write_bytes(data[: len(data) * 2 // 3])
    return out


REFUSED = {
    "no table": (lambda m, p: other(m, p, drop=("token_embd.weight",)), r"has no embedding table"),
    "damaged": (lambda m, p: cut(m, p / "cut.gguf"), r"no sound GGUF file|ends at"),
    "another tokenizer": (
        lambda m, p: other(m, p, change={"tokenizer.ggml.tokens": swapped(m)}),
        r"another tokenizer than tiny: 2 of \d+ tokens differ",
    ),
    "no such file": (lambda m, p: p / "none.gguf", "no such file"),
    "an mmproj": (lambda m, p: other(m, p, architecture="clip"), "is an mmproj"),
    "layers that are none": (lambda m, p: other(m, p, change={"llama.block_count": 0}), "llama.block_count 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_adopted_is_refused(case, checkpoint, published, tmp_path):
    make, match = REFUSED[case]
    with pytest.raises(CheckpointError, match=match):
        adopted(make(published, tmp_path), checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_decoder_of_another_width_is_refused(published, tmp_path):
    standin.write(tmp_path / "wide", Shape(TOWER, replace(DECODER, hidden=128, head_dim=32)), projector="linear")
    with pytest.raises(CheckpointError, match="reads embeddings 64 wide, and the projector of wide gives 128"):
        adopted(published, tmp_path / "wide", tmp_path / "out")


def test_added_tokens_that_the_decoder_lacks_are_named(checkpoint, published, tmp_path, monkeypatch):
    tokens = tokens_of(published)
    tokens[500] = "[PAD500]"
    model = copied(published, tmp_path / "other.gguf", change={"tokenizer.ggml.tokens": tokens})
    compared = Decoder._compare_tokens

    def with_image_token(self, checkpoint):
        data = json.loads(checkpoint.tokenizer_json())
        data["added_tokens"].append({"id": 500, "content": "<image>"})
        compared(self, replaced(checkpoint, json.dumps(data)))

    monkeypatch.setattr(Decoder, "_compare_tokens", with_image_token)
    with pytest.raises(CheckpointError, match="lacks added tokens of tiny: '<image>'"):
        adopted(model, checkpoint, tmp_path / "out")


def replaced(checkpoint, tokenizer):
    class Told:
        name = checkpoint.name

        def tokenizer_json(self):
            return tokenizer

    return Told()


def test_a_decoder_that_reads_rows_otherwise_is_refused(checkpoint, published, tmp_path, monkeypatch):
    rows = Decoder.rows
    monkeypatch.setattr(Decoder, "rows", lambda self, ids: rows(self, ids)[::-1] * 30)
    with pytest.raises(CheckpointError, match="answers rows of the embedding table otherwise"):
        adopted(published, checkpoint, tmp_path / "out")


def test_an_architecture_that_llama_cpp_does_not_run_is_refused(checkpoint, published, tmp_path):
    model = copied(published, tmp_path / "parrot.gguf", "parrot")
    with pytest.raises(EngineError, match=r"cannot open parrot\.gguf.*parrot"):
        adopted(model, checkpoint, tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"schemes": ("decoder=q4_0",)}, "gguf q4_0 would be another"),
        ({"schemes": ("q4_0",)}, "gguf q4_0 would be another"),
        ({"schemes": ("decoder=q8_0",)}, "gguf q8_0 would be another"),
        ({"format": "onnx"}, "onnx .* would be another|cannot write"),
        ({"recipe": "onnx-w8a8-w4"}, "onnx w4 would be another"),
        ({"quantize": "gptq"}, "--quantize does not go with --vision"),
        ({"target_size": 1000}, "--target-size does not go with --vision"),
        ({"checkpoint": "owner/name"}, "--vision goes with a decoder's GGUF file, which 'owner/name' is not"),
        ({"base": "x"}, "--base does not go with --vision"),
    ],
)
def test_what_a_call_asks_of_the_decoder_is_refused(more, match, checkpoint, published, tmp_path):
    others = {name: value for name, value in more.items() if name != "checkpoint"}
    with pytest.raises(UsageError, match=match):
        adopted(more.get("checkpoint", published), checkpoint, tmp_path / "out", **others)
