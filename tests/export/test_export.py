"""`export`: what a bundle holds, in every scheme and from every kind of checkpoint, and what is refused at once."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from exported import Exports, files_of, golden_of, manifest_of, weights
from safetensors.torch import load_file, save_file

from edge import devices
from edge.bundle.manifest import Bundle
from edge.errors import CheckpointError, EngineError, UsageError
from edge.inputs import image
from edge.planning.fit import fit
from exporters import golden_sample, preview
from exporters.export import ExportRequest, export

TOWER = "model.vision_tower.vision_tower.vision_model."


# what is written


CALLS = {
    "fp32": ({"schemes": ("fp32",)}, ("fp32", "fp32"), "custom"),
    "fp16": ({"schemes": ("fp16",)}, ("fp16", "fp16"), "custom"),
    "w8": ({"recipe": "onnx-w8a8-w8"}, ("w8a8", "w8"), "onnx-w8a8-w8"),
    "default": ({}, ("w8a8", "w4"), "onnx-w8a8-w4"),
}


@pytest.mark.parametrize(("request_", "schemes", "recipe"), CALLS.values(), ids=CALLS.keys())
def test_a_bundle_in_every_scheme(exports: Exports, request_, schemes, recipe):
    done = exports.export(**request_)
    assert done.report.ok
    bundle = Bundle.open(done.path)
    bundle.check()
    assert (bundle.manifest.part("vision").scheme, bundle.manifest.part("decoder").scheme) == schemes
    assert bundle.manifest.recipe == recipe
    sizes = {path.name: path.stat().st_size for path in done.path.iterdir()}
    assert sizes.pop("manifest.json") > 0
    assert sizes == {file.path: file.bytes for file in bundle.manifest.files()}
    assert done.bytes == sum(sizes.values())


def test_fp32_is_the_same_model(exports: Exports):
    report = exports.export(schemes=("fp32",)).report
    for stage in ("vision", "prefill"):
        assert report.error(stage, "fp32")["max_abs"] < 1e-4
    assert report.error("tokens", "fp32") == {"tokens": 1.0}


def test_narrower_schemes_cost_more_and_take_less(exports: Exports):
    done = [exports.export(**CALLS[wanted][0]) for wanted in ("fp32", "fp16", "w8", "default")]
    fp32, fp16, w8, w4 = (1 - each.report.error("prefill", "fp32")["cosine"] for each in done)
    assert fp32 == pytest.approx(fp16, abs=1e-9)  # the checkpoint is in float16
    assert fp16 + 1e-6 < w8 < w4 < 0.1
    sizes = [each.bytes for each in done]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("kind", "image_tokens"),
    [
        ({"projector": "ldpnet", "dtype": "bfloat16"}, 144),
        ({"projector": "linear", "dtype": "float32", "shards": 3}, 576),
        ({"projector": "mlp2x_gelu", "format": "bin", "shards": 2}, 576),
    ],
    ids=lambda kind: kind["projector"] if isinstance(kind, dict) else "",
)
def test_every_projector_dtype_and_layout(exports: Exports, kind, image_tokens):
    source = exports.checkpoint(**kind)
    done = exports.export(schemes=("fp32",), checkpoint=source)
    assert done.report.ok
    assert Bundle.open(done.path).manifest.spec.prompt.image_tokens == image_tokens
    assert golden_of(done.path).fp32.image_embeds.shape == (1, image_tokens, 64)
    # The numbers of the checkpoint, widened and not changed.
    stored = np.load(done.path / "embed_tokens.npy")
    assert stored.dtype == np.float32
    np.testing.assert_array_equal(stored, tensor(source, "model.embed_tokens.weight").float().numpy())


def tensor(checkpoint, name):
    for path in sorted(checkpoint.iterdir()):
        if path.suffix in (".safetensors", ".bin"):
            found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
            if name in found:
                return found[name]
    raise KeyError(name)


def test_a_tower_elsewhere_and_a_shorter_context(exports: Exports, tmp_path):
    """The same model, whose tower lies in another folder; two of the checkpoint's options in one export."""
    source = shutil.copytree(exports.checkpoint(), tmp_path / "checkpoint")
    state = load_file(source / "model.safetensors")
    tower = {name.removeprefix("model.vision_tower."): state.pop(name) for name in list(state) if TOWER in name}
    (tmp_path / "tower").mkdir()
    save_file(tower, tmp_path / "tower" / "model.safetensors")
    save_file(state, source / "model.safetensors")
    with pytest.raises(CheckpointError, match="no weights of the vision tower"):
        exports.export(schemes=("fp32",), checkpoint=source)
    done = exports.export(schemes=("fp32",), checkpoint=source, vision_tower=tmp_path / "tower", context=512)
    whole = golden_of(exports.bundle(schemes=("fp32",)))
    found = golden_of(done.path)
    np.testing.assert_array_equal(found.fp32.image_embeds, whole.fp32.image_embeds)
    np.testing.assert_array_equal(found.fp32.logits, whole.fp32.logits)
    assert manifest_of(done.path)["decoder"]["context"] == 512
    assert manifest_of(exports.bundle(schemes=("fp32",)))["decoder"]["context"] == 1024
    assert weights(done.path, "decoder")["cos_cache"].shape == (512, 8)


def test_pictures_of_the_user_s_own(exports: Exports):
    """Golden is made of the first; all of them guide the rounding."""
    done = exports.export(calib=exports.calibration)
    assert done.report.ok
    assert manifest_of(done.path)["prompt"]["golden"]["question"] == "What colour is it?"
    np.testing.assert_array_equal(golden_of(done.path).picture, image.open_image(exports.calibration / "0.png"))
    assert shlex.split(done.next_command) == ["edge", "run", str(done.path), "PICTURE", "What colour is it?"]
    plain, guided = (weights(path, "decoder") for path in (exports.bundle(), done.path))
    name = "decoder.layers.0.gate_up_proj.weight.int4"
    assert not np.array_equal(guided[name], plain[name])


# the manifest


@pytest.mark.parametrize("schemes", [("fp32",), ()])
def test_the_manifest_follows_the_schema(exports: Exports, schemes):
    schema = json.loads((REPOSITORY / "edge" / "bundle" / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(manifest_of(exports.bundle(schemes=schemes)))


def test_the_manifest_tells_where_the_bundle_comes_from_and_no_path(exports: Exports):
    path = exports.bundle()
    manifest = manifest_of(path)
    assert manifest["name"] == manifest["source"]["name"] == exports.checkpoint().name
    assert len(manifest["source"]["sha256"]) == 64
    assert manifest["license"] == "cc0-1.0"
    assert set(manifest["versions"]) == {"edge-vlm", "torch", "onnx-ir", "onnxruntime"}
    assert manifest["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    text = (path / "manifest.json").read_text(encoding="utf-8")
    assert [place for place in (str(exports.folder), str(REPOSITORY), str(Path.home()) + "/") if place in text] == []


def test_no_file_tells_where_it_was_made(exports: Exports):
    for file in exports.bundle().iterdir():
        content = file.read_bytes()
        for place in (exports.folder, REPOSITORY, sys.prefix):
            assert str(place).encode() not in content, (file.name, place)


def test_the_manifest_keeps_what_was_measured(exports: Exports):
    done = exports.export()
    vision, decoder = Bundle.open(done.path).manifest.parts
    expected = {
        f"{row.stage}.{row.against}.{measure}": value
        for row in done.report.rows
        for measure, value in row.error.items()
    }
    lost = {"vision.fp32.loss": done.costs["vision"].loss, "prefill.fp32.loss": done.costs["decoder"].loss}
    assert all(0 < loss < 0.05 for loss in lost.values())
    expected |= lost
    assert vision.error == {key: value for key, value in expected.items() if key.startswith("vision.")}
    assert decoder.error == {key: value for key, value in expected.items() if key.startswith(("prefill.", "tokens."))}
    assert set(decoder.error) == {
        *(f"prefill.{against}.{measure}" for against in ("stored", "fp32") for measure in ("max_abs", "cosine")),
        "tokens.stored.tokens",
        "tokens.fp32.tokens",
        "prefill.fp32.loss",
    }
    assert decoder.error["prefill.fp32.max_abs"] > 0


def test_the_last_words_say_what_to_type(exports: Exports):
    done = exports.export(schemes=("fp32",))
    assert shlex.split(done.next_command) == ["edge", "run", str(done.path), "PICTURE", golden_sample.QUESTION]
    assert done.seconds > 0


# what cannot be done is said before anything is read


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"schemes": ("vision=w4",)}, "onnx cannot write the vision as 'w4'"),
        ({"schemes": ("w3",)}, "no part can be written as 'w3'"),
        ({"format": "tarball"}, "no format 'tarball'"),
        ({"recipe": "tiny"}, "no recipe 'tiny'"),
        ({"device": "toaster"}, "no device 'toaster'"),
        ({"calib": Path("nowhere")}, r"no prompts\.jsonl in 'nowhere'"),
    ],
)
def test_an_impossible_call_stops_before_the_checkpoint_is_read(tmp_path, request_, message):
    request = ExportRequest(str(tmp_path / "nowhere"), tmp_path / "out", **request_)
    with pytest.raises(UsageError, match=message):
        export(request, lambda stage, done: None)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        export(ExportRequest(str(tmp_path / "nowhere"), tmp_path / "out"), lambda stage, done: None)
    assert list(tmp_path.iterdir()) == []


def test_an_export_tells_how_far_it_is_and_leaves_its_source(exports: Exports, tmp_path):
    source = shutil.copytree(exports.checkpoint(), tmp_path / "checkpoint")
    before, seen = files_of(source), {}
    request = ExportRequest(str(source), tmp_path / "out", schemes=("fp32",), threads=1)
    export(request, lambda stage, done: seen.setdefault(stage, []).append(done))
    assert files_of(source) == before
    assert list(seen) == ["read", "vision: onnx fp32", "decoder: onnx fp32", "verify"]
    for stage, shares in seen.items():
        assert shares == sorted(shares), stage
        assert (shares[0], shares[-1]) == (0.0, 1.0), stage


# a device that was named


def test_what_a_device_cannot_hold_is_told_before_the_work(exports: Exports, tmp_path, monkeypatch):
    small = replace(devices.profile("rpi5"), memory_bytes=90_000_000)
    monkeypatch.setattr(devices, "profile", lambda name: small)
    seen = []
    request = ExportRequest(str(exports.checkpoint()), tmp_path / "out", device="rpi5", recipe="onnx-fp32")
    with pytest.raises(EngineError, match=r"too little memory: .* and 90 MB are there"):
        export(request, lambda stage, done: seen.append(stage))
    assert set(seen) == {"read"}
    assert list(tmp_path.iterdir()) == []


def test_a_prediction_goes_with_an_export_for_a_device(exports: Exports):
    assert exports.export(schemes=("fp32",)).fit is None
    foreseen = preview.foresee(str(exports.checkpoint()), "onnx-fp32", None, ())
    found = fit(foreseen, devices.profile("rpi5"))
    assert found.device == "Raspberry Pi 5"
    assert [choice.engine for choice in found.plan.choices] == ["onnxruntime", "onnxruntime"]


def test_what_is_foreseen_is_what_is_written(exports: Exports):
    written = Bundle.open(exports.export(schemes=("fp32",)).path).manifest
    foreseen = preview.foresee(str(exports.checkpoint()), "onnx-fp32", None, ())
    assert (foreseen.spec, foreseen.name) == (written.spec, written.name)
    for part, told in zip(written.parts, foreseen.parts, strict=True):
        assert (told.covers, told.format, told.scheme) == (part.covers, part.format, part.scheme)
        assert sum(f.bytes for f in told.files) == pytest.approx(sum(f.bytes for f in part.files), rel=0.2)
