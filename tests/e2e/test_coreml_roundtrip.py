"""Core ML bundles by the commands: written, proven where nothing can run them, and refused where they cannot run."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import coremltools
import pytest
from commands import call
from conftest import REPOSITORY
from exported import Exports, failed, manifest_of, vouch

from edge.bundle.manifest import Bundle
from edge.devices import detect
from edge.verify import Report, verify
from exporters import export as side
from exporters.formats.coreml.fp16_overflow import LIMIT
from exporters.models import room

RECIPES = ("coreml-fp16", "coreml-w8-w8", "coreml-w8-w4", "coreml-w8-pal4")
elsewhere = pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has the engine itself")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_proven(exports: Exports, recipe):
    done = exports.export(recipe=recipe, context=256)
    assert done.report.ok
    bundle = Bundle.open(done.path)
    bundle.check()
    vision, decoder = (bundle.manifest.part(role) for role in ("vision", "decoder"))
    assert [f.path for f in vision.files] == [
        "Vision.mlpackage/Manifest.json",
        "Vision.mlpackage/Data/com.apple.CoreML/model.mlmodel",
        "Vision.mlpackage/Data/com.apple.CoreML/weights/weight.bin",
    ]
    assert decoder.files[0].path == "Decoder.mlpackage/Manifest.json"
    assert list(vision.details["functions"]) == ["encode", "encode_image"]
    assert decoder.details["states"][0]["shape"] == [2, 1, 2, 256, 16]
    assert "coremltools" in manifest_of(done.path)["versions"]


def test_the_demo_says_the_same_words_in_half_precision(exports: Exports):
    source = REPOSITORY / "exporters" / "demo" / "checkpoint"
    report = exports.export(recipe="coreml-fp16", checkpoint=source, context=256).report
    for stage in ("vision", "prefill"):
        assert report.error(stage, "fp32")["cosine"] >= 0.9999
    assert report.error("tokens", "fp32") == {"tokens": 1.0}


def test_a_wrong_weight_is_found(exports: Exports, tmp_path):
    bundle = shutil.copytree(exports.bundle(recipe="coreml-w8-w4", context=256), tmp_path / "bundle")
    file = bundle / "Decoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(file.read_bytes())
    content[2000:2400] = bytes(400)
    file.write_bytes(content)
    said = call("verify", bundle)
    assert said.code == 1 and "weight.bin is not the file that was exported" in said.err
    vouch(bundle)
    assert ("prefill", "stored") in failed(verify(Bundle.open(bundle)))


@pytest.mark.parametrize("device", ["macos", "apple_a17pro"])
def test_an_apple_device_takes_its_recipe_and_the_plan_its_engine(exports: Exports, device):
    done = exports.export(device=device, context=256)
    assert manifest_of(done.path)["recipe"] == "coreml-w8-w4"
    assert done.fit and {choice.engine for choice in done.fit.plan.choices} == {"coreml"}
    said = call("fit", done.path, "--device", device, "--json")
    assert said.code == 0 and said.json["fits"]


@elsewhere
def test_the_next_command_is_one_that_works_here(exports: Exports):
    done = exports.export(recipe="coreml-w8-w4", context=256)
    assert done.next_command == f"edge verify {done.path}"


def test_the_form_for_the_neural_engine_is_proven_too(exports: Exports):
    done = exports.export(recipe="coreml-w8-w4", context=256, options={"coreml": {"ane": True}})
    plain = exports.export(recipe="coreml-w8-w4", context=256)
    parts, before = (manifest_of(made.path)["parts"] for made in (done, plain))
    assert [part["details"]["layout"] for part in parts] == ["channels first"] * 2
    assert [part["details"]["layout"] for part in before] == ["rows"] * 2
    for stage in ("vision", "prefill"):
        assert done.report.error(stage, "stored")["cosine"] >= 0.9999
        assert abs(done.report.error(stage, "fp32")["cosine"] - plain.report.error(stage, "fp32")["cosine"]) < 1e-3
    said = call("inspect", done.path, "--placement", "--json")
    kinds = {op["operation"] for part in said.json["parts"] for op in part["operations"]}
    assert {"conv", "einsum"} < kinds and "linear" not in kinds


def test_the_form_for_the_neural_engine_is_core_ml_s_only(exports: Exports, tmp_path):
    said = call("export", exports.checkpoint(), "-o", tmp_path / "out", "--ane")
    assert said.code == 2 and "--ane is for Core ML packages, and none is written" in said.err


@pytest.mark.parametrize(
    ("options", "message"), [(("--format", "coreml"), "which is on a Mac only"), ((), "none is written")]
)
@elsewhere
def test_the_compiler_is_on_a_mac_only(exports: Exports, tmp_path, options, message):
    said = call("export", exports.checkpoint(), "-o", tmp_path / "out", "--compile", *options)
    assert said.code == 2 and message in said.err
    assert not (tmp_path / "out").exists()


def test_what_the_compiler_makes_is_listed(exports: Exports, monkeypatch, tmp_path):
    """A stand-in of Apple's compiler: the real one was not run."""

    def compile_model(model, destination_path=None):
        assert Path(model, "Manifest.json").is_file()
        Path(destination_path, "weights").mkdir(parents=True)
        Path(destination_path, "weights", "weight.bin").write_bytes(b"compiled")
        return destination_path

    here = detect()  # by this system, which is no other
    monkeypatch.setattr(room, "detect", lambda: here)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(coremltools.models.utils, "compile_model", compile_model)
    monkeypatch.setattr(side, "require_engines", lambda recipe: None)
    monkeypatch.setattr(side, "verify", lambda bundle, threads: Report(()))
    request = side.ExportRequest(
        str(exports.checkpoint()),
        tmp_path / "out",
        recipe="coreml-fp16",
        context=256,
        options={"coreml": {"compile": True}},
        threads=1,
    )
    side.export(request, lambda stage, done: None)
    bundle = Bundle.open(tmp_path / "out")
    bundle.check()
    assert [file.path for file in bundle.manifest.companions] == [
        "Decoder.mlmodelc/weights/weight.bin",
        "Vision.mlmodelc/weights/weight.bin",
    ]


@elsewhere
def test_run_points_to_verify_and_verify_proves(exports: Exports):
    bundle = exports.bundle(recipe="coreml-w8-w4", context=256)
    said = call("run", bundle, "What is this?")
    assert said.code == 1
    assert "coreml: Core ML runs on macOS 15 and iOS 18 only; edge verify proves the bundle on any machine" in said.err
    said = call("verify", bundle, "--json")
    assert (said.code, said.json["ok"], said.json["evaluated"]) == (0, True, ["coreml"])
    assert "computes the same model (coreml: computed by an evaluator, not run)" in said.err


@elsewhere
def test_inspect_predicts_where_each_operation_runs(exports: Exports):
    bundle = exports.bundle(recipe="coreml-w8-w4", context=256)
    said = call("inspect", bundle, "--placement", "--json")
    vision, decoder = said.json["parts"]
    assert (vision["covers"], vision["engine"], vision["predicted"]) == (["vision", "projector"], "mil", True)
    assert {op["function"] for op in decoder["operations"]} == {"prefill", "decode"}
    counted = Counter(op["processor"] for op in decoder["operations"] if op["function"] == "decode")
    told = manifest_of(bundle)["parts"][1]["details"]["predicted_placement"]["decode"]
    assert counted["ane"] == told["ane"] > 0
    assert counted["gpu or cpu"] == sum(told["gpu_or_cpu"].values()) > 0
    shown = call("inspect", bundle, "--placement")
    assert shown.code == 0 and "ane (predicted)" in shown.out and "shape not known" in shown.out
    said = call("inspect", exports.bundle(format="tflite"), "--placement")
    assert said.code == 2 and "no part whose operations are placed one by one" in said.err


def test_what_was_computed_in_fp32_is_in_the_manifest(exports: Exports):
    """The stand-in's numbers are small: nothing is."""
    details = json.loads(json.dumps(manifest_of(exports.bundle(recipe="coreml-fp16", context=256))))["parts"]
    assert [part["details"]["fp32"] for part in details] == [{}, {}]
    assert LIMIT == 65504 / 4
