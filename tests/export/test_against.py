"""`verify_against`: a bundle held to the checkpoint that it was made from."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from exported import Exports, failed, golden_of, lying, manifest_of, vouch, weights

from edge.bundle.manifest import Bundle
from edge.errors import CheckpointError, ParityError, UsageError
from edge.verify import verify
from exporters.verify_checkpoint import verify_against


def against(bundle, checkpoint):
    return verify_against(Bundle.open(bundle), str(checkpoint), None, threads=1)


@pytest.mark.parametrize("schemes", [("fp32",), ()], ids=["fp32", "default"])
def test_the_checkpoint_that_it_was_made_from(exports: Exports, schemes):
    done = exports.export(schemes=schemes)
    report = against(done.path, exports.checkpoint())
    assert report.ok
    anew = [row for row in report.rows if row.against == "checkpoint"]
    assert [row.stage for row in anew] == ["prompt", "vision", "prefill"]
    for row in anew:
        assert row.tolerance
        assert row.error.get("max_abs", 0.0) < 1e-4
    for row in done.report.rows:  # the same numbers again: nothing in the reference is random
        assert report.error(row.stage, row.against) == pytest.approx(row.error, abs=1e-4), row


def test_a_shorter_context_is_the_bundle_s_own(exports: Exports):
    done = exports.export(schemes=("fp32",), context=512)
    assert Bundle.open(done.path).manifest.spec.decoder.context == 512
    assert against(done.path, exports.checkpoint()).ok


def test_pictures_of_the_user_s_own(exports: Exports):
    """The weights were rounded as calibration said, and nothing of it lies in the bundle."""
    assert against(exports.bundle(calib=exports.calibration), exports.checkpoint()).ok


def test_another_checkpoint_is_named(exports: Exports):
    other = exports.checkpoint(seed=1)
    with pytest.raises(ParityError, match="is not the checkpoint that this bundle was made from") as caught:
        against(exports.bundle(schemes=("fp32",)), other)
    assert str(other) in caught.value.message


def test_a_checkpoint_with_one_other_bit(exports: Exports, tmp_path):
    source = shutil.copytree(exports.checkpoint(), tmp_path / "checkpoint")
    with (source / "model.safetensors").open("r+b") as file:
        file.seek(-2, 2)
        last = file.read(1)
        file.seek(-2, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(ParityError, match="sha256"):
        against(exports.bundle(schemes=("fp32",)), source)


def test_a_bundle_of_schema_1_is_held_to_what_it_tells(exports: Exports, tmp_path):
    bundle = shutil.copytree(exports.bundle(schemes=("fp32",)), tmp_path / "bundle")
    manifest = manifest_of(bundle)
    del manifest["vision"]
    decoder = manifest["decoder"]
    for name in ("family", "ffn", "gated"):
        del decoder[name]
    decoder["rope_theta"] = decoder.pop("rope")["theta"]
    for part in manifest["parts"]:
        del part["weights"]
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "schema": 1}))
    assert against(bundle, exports.checkpoint()).ok
    decoder["rope_theta"] *= 2
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "schema": 1}))
    with pytest.raises(UsageError, match="reads the checkpoint in another way"):
        against(bundle, exports.checkpoint())


def test_a_checkpoint_that_was_moved_is_the_same(exports: Exports, tmp_path):
    moved = shutil.copytree(exports.checkpoint(), tmp_path / "elsewhere")
    assert against(exports.bundle(schemes=("fp32",)), moved).ok


def test_golden_that_was_made_to_fit_does_not_help(exports: Exports, tmp_path):
    """A wrong graph with a golden that it fulfils: replaying finds nothing, the checkpoint does."""
    true = exports.bundle(schemes=("fp32",))
    numbers = weights(true, "decoder")
    name = "decoder.norm.weight"
    bundle = lying(true, tmp_path / "lying", "decoder", {name: numbers[name] * np.float32(1.5)})
    golden = golden_of(bundle)
    for outputs in (golden.fp32, golden.stored):
        outputs.logits[:] *= 1.5  # a gain before the head is a gain behind it
    golden.save(bundle / "golden.safetensors")
    vouch(bundle)
    assert verify(Bundle.open(bundle), threads=1).ok
    assert failed(against(bundle, exports.checkpoint())) == {("prefill", "checkpoint")}


def test_a_tokenizer_of_another_cut_is_found(exports: Exports, tmp_path):
    """The bundle agrees with itself, and not with the checkpoint."""
    bundle = shutil.copytree(exports.bundle(schemes=("fp32",)), tmp_path / "bundle")
    manifest = manifest_of(bundle)
    manifest["prompt"]["golden"]["segments"][-1][-1] += 1
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert ("prompt", "checkpoint") in failed(against(bundle, exports.checkpoint()))


def test_a_bundle_of_another_reading_is_to_be_exported_again(exports: Exports, tmp_path):
    bundle = shutil.copytree(exports.bundle(schemes=("fp32",)), tmp_path / "bundle")
    manifest = manifest_of(bundle)
    manifest["image"]["resample"] = "bilinear"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="reads the checkpoint in another way"):
        against(bundle, exports.checkpoint())


def test_a_checkpoint_that_is_not_there(exports: Exports, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        against(exports.bundle(schemes=("fp32",)), tmp_path / "nowhere")
