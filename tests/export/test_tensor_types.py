"""Kinds of their own for chosen tensors of a GGUF decoder."""

from __future__ import annotations

import dataclasses
import json

import gguf
import jsonschema
import numpy as np
import pytest
from commands import call
from conftest import REPOSITORY
from gguf import GGMLQuantizationType as Kind
from small_models import write

from edge.bundle.manifest import Bundle
from edge.errors import EdgeError, UsageError
from edge.recipes import bytes_per_weight
from exporters import pipeline, preview, standin, targets
from exporters.export import ExportRequest, export
from exporters.formats import Job
from exporters.formats import gguf as format
from exporters.gguf import quantizer, tensor_types
from exporters.models.decoders import llama
from exporters.models.vision.clip import TowerConfig
from exporters.sources.checkpoint import open_checkpoint
from exporters.standin.random_weights import Shape

TOWER = TowerConfig(image_size=336, patch_size=14, hidden=64, layers=3, heads=1, ffn=96)
DECODER = llama.Config(layers=2, hidden=256, ffn=512, heads=4, kv_heads=2, head_dim=64, vocab=512, context=1024)
LEGAL = format.PACKED_KINDS + format.QUANTIZER_KINDS
ROWS = {"token_embd.weight": 256, "blk.0.ffn_up.weight": 96, "blk.1.ffn_up.weight": 96, "blk.1.ffn_down.weight": 512}


def checkpoint_of(folder, config=DECODER):
    standin.write(folder / "tiny", Shape(TOWER, config))
    return folder / "tiny"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoint_of(tmp_path_factory.mktemp("checkpoints"))


def kinds_of(path):
    return {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}


def written(checkpoint, folder, scheme, words=()):
    """The kinds in the file, the file, and the module as stored."""
    folder.mkdir()
    opened = open_checkpoint(str(checkpoint))
    component = pipeline.components(opened)[1]
    module = component.load(opened.weights)
    (path,), *_ = write(
        format,
        component,
        module,
        scheme,
        folder,
        lambda _: None,
        checkpoint=opened,
        options={"tensor_type": tuple(words)},
    )
    return kinds_of(path), path, module


def nothing(*_):
    pass


@pytest.mark.parametrize("scheme", ["q4_k_m", "q3_k_m", "q4_0", "bf16"])
def test_the_tensors_asked_for_and_no_others(checkpoint, scheme, tmp_path):
    words = ("ffn_down=f16", "ATTN_V=q8_0", "^output=q4_0", r"blk\.\d+\.attn_q=q6_k", "blk.1.ffn_up=f32")
    usual, *_ = written(checkpoint, tmp_path / "usual", scheme)
    found, path, module = written(checkpoint, tmp_path / "found", scheme, words)
    assert found == usual | {
        "blk.0.ffn_down.weight": Kind.F16,
        "blk.1.ffn_down.weight": Kind.F16,
        "blk.0.attn_v.weight": Kind.Q8_0,
        "blk.1.attn_v.weight": Kind.Q8_0,
        "output.weight": Kind.Q4_0,
        "blk.0.attn_q.weight": Kind.Q6_K,
        "blk.1.attn_q.weight": Kind.Q6_K,
        "blk.1.ffn_up.weight": Kind.F32,
    }
    reader = gguf.GGUFReader(path)
    assert reader.fields["edge_vlm.tensor_types"].contents() == list(words)
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType[f"MOSTLY_{scheme.upper()}"]
    (down,) = (tensor for tensor in reader.tensors if tensor.name == "blk.0.ffn_down.weight")
    np.testing.assert_array_equal(down.data, module.state_dict()["layers.0.down_proj.weight"].numpy())


@pytest.mark.parametrize("kind", LEGAL)
def test_every_kind(checkpoint, kind, tmp_path):
    """What is packed here and llama.cpp's quantiser agree on what a name means."""
    for scheme in ("q4_k_m", "q8_0")[: 1 + (kind in format.PACKED_KINDS)]:
        found, *_ = written(checkpoint, tmp_path / scheme, scheme, (f"ffn_gate={kind}",))
        assert found["blk.0.ffn_gate.weight"] == found["blk.1.ffn_gate.weight"] == Kind[kind.upper()]


def test_a_bundle_says_so_and_is_proven(checkpoint, tmp_path):
    asked = ("ffn_down=Q5_K", "attn_[a-z]=Q8_0")
    request = ExportRequest(
        str(checkpoint),
        tmp_path / "out",
        format="gguf",
        schemes=("q4_k_m",),
        options={"gguf": {"tensor_type": asked}},
        threads=1,
    )
    done = export(request, nothing)
    assert done.report.ok
    manifest = Bundle.open(done.path).manifest
    part = manifest.part("decoder")
    assert (manifest.recipe, part.scheme) == ("custom", "q4_k_m")
    assert part.options == {"tensor_type": ["ffn_down=q5_k", "attn_[a-z]=q8_0"]}
    assert part.tolerance == format.SCHEMES["decoder"]["q4_k_m"]
    assert manifest.part("vision").options == {}
    kinds = kinds_of(done.path / part.files[0].path)
    assert {kinds["blk.0.ffn_down.weight"], kinds["blk.1.ffn_down.weight"]} == {Kind.Q5_K}
    assert kinds["blk.1.attn_output.weight"] == Kind.Q8_0
    assert kinds["blk.1.ffn_up.weight"] == Kind.Q4_K
    schema = json.loads((REPOSITORY / "edge" / "bundle" / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(json.loads((done.path / "manifest.json").read_text()))
    shown = call("inspect", done.path).out
    assert "ffn_down=q5_k" in shown
    assert "attn_[a-z]=q8_0" in shown


def test_a_bundle_without_says_nothing(exports):
    assert all(part.options == {} for part in Bundle.open(exports.bundle(format="gguf")).manifest.parts)


def test_the_first_that_matches_holds():
    assert tensor_types.kinds(("blk.1=q8_0", "ffn_up=q4_0"), ROWS) == {
        "blk.1.ffn_up.weight": Kind.Q8_0,
        "blk.1.ffn_down.weight": Kind.Q8_0,
        "blk.0.ffn_up.weight": Kind.Q4_0,
    }


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (
            ("ffn_gate=q8_0",),
            "'ffn_gate=q8_0' matches no matrix",
            "token_embd.weight, blk.N.ffn_up.weight",
        ),
        (("ffn=q8_0", r"ffn_up\.=f16"), r"'ffn_up\\.=f16' decides about no matrix", "narrower pattern"),
        (("ffn_down=q6_k", "up=Q5_K"), "blk.0.ffn_up.weight has rows of 96, and Q5_K stores blocks of 256", "up=q8_0"),
    ],
)
def test_what_the_names_and_shapes_refuse(words, message, hint):
    with pytest.raises(UsageError) as caught:
        tensor_types.kinds(words, ROWS)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("scheme", "word", "message", "hint"),
    [
        ("q4_k_m", "attn_v", "'attn_v' is not PATTERN=KIND", "--tensor-type attn_v=q8_0"),
        ("q4_k_m", "=q8_0", "'=q8_0' is not PATTERN=KIND", "--tensor-type attn_v=q8_0"),
        ("q4_k_m", "attn_v=", "no kind '' for", ", ".join(LEGAL)),
        ("q4_k_m", "attn_v=Q7_K", "no kind 'Q7_K' for --tensor-type 'attn_v=Q7_K'", ", ".join(LEGAL)),
        ("q4_k_m", "attn_v=iq2_xs", "no kind 'iq2_xs'", ", ".join(LEGAL)),
        ("q4_0", "attn_v=q5_k", "no kind 'q5_k'", "f32, f16, bf16, q8_0, q6_k, q4_0"),
        ("q4_k_m", "attn_(v=q8_0", "'attn_(v' is no regular expression", "quote it"),
        ("q4_k_m", "blk.[[:digit:]]=q8_0", "no regular expression: Possible nested set", "quote it"),
        ("q4_k_m", "x{99999999999}=q8_0", "is no regular expression", "quote it"),
    ],
)
def test_what_is_no_kind_is_refused_by_the_skeleton(checkpoint, scheme, word, message, hint, tmp_path):
    opened = open_checkpoint(str(checkpoint))
    component, options = opened.components["decoder"], {"tensor_type": ("ffn=q8_0", word)}
    with pytest.raises(UsageError) as caught:
        format.check(Job(component, scheme, tmp_path, opened, options=options))
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_call_of_other_kinds():
    usual = targets.resolve(None, (), "onnx-w8a8-gguf-q4_k_m", None)
    options = {"gguf": {"tensor_type": ("(?=attn)=Q8_0",)}}
    asked = targets.resolve(None, (), "onnx-w8a8-gguf-q4_k_m", None, options)
    assert (asked.name, asked.targets) == ("custom", usual.targets)
    with pytest.raises(UsageError, match="--tensor-type is for a GGUF decoder, and none is written") as caught:
        targets.resolve(None, (), None, None, options)
    assert "--format gguf" in caught.value.hint


@pytest.mark.parametrize(
    ("word", "message"), [("attn_w=q8_0", "matches no matrix"), ("ffn_down=q4_k", "has rows of 96, and q4_k")]
)
def test_nothing_is_computed_for_what_cannot_be(word, message, tmp_path):
    source = checkpoint_of(tmp_path, dataclasses.replace(DECODER, ffn=96))
    stages = []
    request = ExportRequest(
        str(source),
        tmp_path / "out",
        format="gguf",
        schemes=("q4_k_m",),
        options={"gguf": {"tensor_type": (word,)}},
        threads=1,
    )
    with pytest.raises(UsageError, match=message):
        export(request, lambda stage, done: stages.append(stage))
    assert set(stages) == {"read"}
    assert not (tmp_path / "out").exists()


def test_the_room_that_is_needed(checkpoint):
    opened = open_checkpoint(str(checkpoint))
    recipe = targets.resolve("gguf", ("q4_k_m",), None, None)
    usual, wide = (
        sum(file.bytes for file in preview.manifest(opened, recipe, {"gguf": {"tensor_type": types}}).files())
        for types in ((), ("ffn_down=f32",))
    )
    assert wide - usual == pytest.approx(2 * 256 * 512 * (4 - bytes_per_weight("gguf", "q4_k_m")), abs=2)


def test_a_library_that_takes_no_notice(checkpoint, tmp_path, monkeypatch):
    lib = quantizer.library()

    class Deaf:
        def __getattr__(self, name):
            return getattr(lib, name)

        def llama_model_quantize(self, source, target, params):
            params._obj.tt_overrides = None
            return lib.llama_model_quantize(source, target, params)

    monkeypatch.setattr(quantizer, "library", Deaf)
    with pytest.raises(EdgeError, match=r"stored blk\.0\.attn_k\.weight as Q4_K, blk\.1\.attn_k\.weight as Q4_K"):
        written(checkpoint, tmp_path / "out", "q4_k_m", ("attn_k=q8_0",))
