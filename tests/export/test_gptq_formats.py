"""Decoders rounded with errors handed on (GPTQ), in every format that has such a scheme, and what is refused."""

from __future__ import annotations

from io import StringIO

import gguf
import pytest
import torch
from exported import Exports, manifest_of
from rich.console import Console

from edge.bundle.manifest import Bundle
from edge.cli import render
from edge.errors import UsageError
from edge.recipes import QUANTIZERS
from exporters import equalizer, pipeline, quantizer, targets
from exporters.export import ExportRequest, export
from exporters.quantization import gptq
from exporters.sources.checkpoint import open_checkpoint
from exporters.standin.command import plant

FORMATS = {
    "onnx": {},
    "tflite": {"format": "tflite"},
    "executorch": {"recipe": "executorch-w8a8-8da4w"},
    "coreml": {"recipe": "coreml-w8-w4"},
    "gguf": {"format": "gguf", "schemes": ("decoder=q4_0",)},
}


def decoder_of(bundle):
    return next(part for part in manifest_of(bundle)["parts"] if "decoder" in part["covers"])


def shown(bundle):
    """By `edge inspect`."""
    console = Console(file=StringIO(), width=200)
    console.print(render.manifest(Bundle.open(bundle).manifest, {}))
    return console.file.getvalue()


@pytest.mark.parametrize("name", FORMATS)
def test_the_artifact_holds_the_integers_that_were_found(name, exports: Exports, monkeypatch):
    """The proof holds what an engine, or the evaluator, computes of it to torch on the module; which is the one that
    was rounded."""
    kept, round_decoder = {}, gptq.round_decoder

    def watched(decoder, *given):
        scales = round_decoder(decoder, *given)
        kept.update(decoder=decoder, before={key: decoder.get_parameter(key).clone() for key in scales})
        return scales

    monkeypatch.setattr(gptq, "round_decoder", watched)
    done = exports.export(**FORMATS[name], calib=exports.calibration, quantize="gptq")
    assert done.report.ok
    keeps = torch.float16 if name == "coreml" else torch.float32
    for key, weight in kept["before"].items():
        assert torch.equal(weight.to(keeps), kept["decoder"].get_parameter(key).to(keeps)), key
    assert decoder_of(done.path)["options"] == {"quantize": "gptq"}
    assert "quantize gptq" in shown(done.path)


def test_a_gguf_file_has_other_kinds_beside(exports: Exports):
    request = {"format": "gguf", "schemes": ("decoder=q4_0",), "calib": exports.calibration, "quantize": "gptq"}
    done = exports.export(**request, options={"gguf": {"tensor_type": ("attn_v=q8_0",)}})
    assert done.report.ok
    (path,) = done.path.glob("*Q4_0.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert (kinds["blk.0.attn_v.weight"], kinds["blk.0.attn_q.weight"]) == ("Q8_0", "Q4_0")


def test_a_widened_layer_keeps_its_scheme_and_its_errors_are_not_handed_on(exports: Exports):
    """It holds what gives on its inputs what the checkpoint's does, in half precision, which loses hardly anything."""
    name = "layers.0.down_proj.weight"
    request = {"calib": exports.calibration, "quantize": "gptq"}
    for more, wide in ({}, "fp16"), (FORMATS["gguf"], "f16"):
        done = exports.export(**request, **more, widened={"decoder": {name: wide}})
        assert done.report.ok
        assert decoder_of(done.path)["options"] == {"widened": {name: wide}, "quantize": "gptq"}
        assert done.costs["decoder"].loss <= exports.export(**request, **more).costs["decoder"].loss
    kinds = {
        tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(next(done.path.glob("*Q4_0.gguf"))).tensors
    }
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.1.ffn_down.weight"]) == ("F16", "Q4_0")


def test_weights_are_equalised_before_they_are_rounded(exports: Exports, monkeypatch, tmp_path):
    """And the checkpoint's own are what the loss is counted from."""
    planted, seen = tmp_path / "planted", {}
    plant(exports.checkpoint(), planted, outlying=(100.0, 2))
    equalised, round_decoder = equalizer.equalised, gptq.round_decoder

    def watched(module, *given):
        found = equalised(module, *given)
        seen["equalised"] = {name: parameter.clone() for name, parameter in module.named_parameters()}
        return found

    def rounding(decoder, *given):
        assert all(torch.equal(seen["equalised"][name], value) for name, value in decoder.named_parameters())
        seen["scales"] = round_decoder(decoder, *given)
        return seen["scales"]

    monkeypatch.setattr(pipeline, "equalised", watched)
    monkeypatch.setattr(gptq, "round_decoder", rounding)
    done = exports.export(checkpoint=planted, calib=exports.calibration, quantize="gptq")
    own = open_checkpoint(str(planted))
    changed = own.components["decoder"].load(own.weights).state_dict()
    assert any(not torch.equal(changed[name], value) for name, value in seen["equalised"].items()), (
        "nothing to equalise"
    )
    assert done.report.ok and seen["scales"]
    assert done.costs["decoder"].loss < 0.02


def test_a_bundle_repeats_it(exports: Exports):
    done = exports.export(calib=exports.calibration, quantize="gptq")
    again = exports.export(recipe=str(done.path), calib=exports.calibration)
    assert decoder_of(again.path) == {**decoder_of(done.path), "error": decoder_of(again.path)["error"]}
    assert again.path != done.path
    recipe = targets.resolve(None, (), str(done.path), None)
    assert quantizer.chosen(None, recipe, calibrated=True) == "gptq"
    assert quantizer.chosen("search", recipe, calibrated=False) == "search"
    assert targets.resolve(None, ("decoder=w8",), str(done.path), None).quantize == "search"
    with pytest.raises(UsageError, match="no conversations are given"):
        exports.export(recipe=str(done.path))


@pytest.mark.parametrize(
    ("request_", "why", "hint"),
    [
        ({"quantize": "awq"}, "no --quantize 'awq'", "search, gptq"),
        ({"quantize": "gptq"}, "no conversations are given", "--calib DIR"),
        ({"quantize": "gptq", "format": "gguf", "schemes": ("decoder=q4_k_m",)}, "written as gguf q4_k_m", "q4_0"),
        ({"quantize": "gptq", "recipe": "coreml-w8-pal4"}, "written as coreml pal4", "--format coreml"),
        ({"quantize": "gptq", "schemes": ("fp32",)}, "written as onnx fp32", "--scheme decoder=w4"),
    ],
)
def test_what_it_cannot_do_is_refused_at_once(request_, why, hint, tmp_path):
    with pytest.raises(UsageError, match=why) as caught:
        export(ExportRequest("nowhere", tmp_path / "out", **request_), lambda stage, done: None)
    assert hint in str(caught.value.hint)


def test_more_conversations_are_taken_where_that_takes_no_quarter_of_an_hour(exports: Exports, monkeypatch):
    decoder = open_checkpoint(str(exports.checkpoint())).components["decoder"]
    assert [quantizer.conversations(how, decoder) for how in QUANTIZERS] == [32, 64]
    monkeypatch.setattr(quantizer, "LARGE", decoder.weights)
    assert [quantizer.conversations(how, decoder) for how in QUANTIZERS] == [32, 32]


def test_every_grid_is_one_that_scales_are_made_for():
    found = {grid for name in FORMATS for grid in quantizer.grids(name).values()}
    assert found == set(gptq.Grid.__args__)
