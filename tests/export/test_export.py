"""`export`: what a bundle holds, that a wrong artifact never becomes one, and that a failure leaves nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import onnx_ir
import pytest
import torch
from conftest import REPOSITORY, write_bundle
from exported import Exports, lying, weights
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from edge import image
from edge.bundle import Bundle
from edge.errors import CheckpointError, EdgeError, EngineError, ParityError, UsageError
from edge.golden import Golden
from edge.verify import verify
from exporters import example, quantize
from exporters import export as exporting
from exporters.attention import Rope
from exporters.build import Built
from exporters.export import ExportRequest, export
from exporters.onnx_graph import lower

TOWER = "model.vision_tower.vision_tower.vision_model."
PROJECTOR = "model.mm_projector."


def manifest_of(path):
    return json.loads((path / "manifest.json").read_bytes())


def golden_of(path):
    return Golden.load(path / "golden.npz")


def failed(report):
    return {(row.stage, row.against) for row in report.rows if not row.ok}


def files_of(folder):
    """Everything below a folder, with its content and time."""
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file()
    }


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


def test_pictures_of_the_user_s_own(exports: Exports, tmp_path):
    """Golden is made of the first; all of them guide the rounding."""
    (tmp_path / "images").mkdir()
    lines = []
    for index, question in enumerate(("What colour is it?", "And this?")):
        Image.new("RGB", (60 + 40 * index, 50), (200, 30 * index, 10)).save(tmp_path / "images" / f"{index}.png")
        lines.append(json.dumps({"image": f"images/{index}.png", "question": question, "answer": "Red."}))
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    done = exports.export(calib=tmp_path)
    assert done.report.ok
    assert manifest_of(done.path)["prompt"]["golden"]["question"] == "What colour is it?"
    np.testing.assert_array_equal(golden_of(done.path).picture, image.open_image(tmp_path / "images" / "0.png"))
    assert shlex.split(done.next_command) == ["edge", "run", str(done.path), "PICTURE", "What colour is it?"]
    plain, guided = (weights(path, "decoder") for path in (exports.bundle(), done.path))
    name = "decoder.layers.0.gate_up_proj.weight.int4"
    assert not np.array_equal(guided[name], plain[name])


# the manifest


@pytest.mark.parametrize("schemes", [("fp32",), ()])
def test_the_manifest_follows_the_schema(exports: Exports, schemes):
    schema = json.loads((REPOSITORY / "edge" / "manifest.schema.json").read_text())
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
    assert vision.error == {key: value for key, value in expected.items() if key.startswith("vision.")}
    assert decoder.error == {key: value for key, value in expected.items() if key.startswith(("prefill.", "tokens."))}
    assert set(decoder.error) == {
        *(f"prefill.{against}.{measure}" for against in ("stored", "fp32") for measure in ("max_abs", "cosine")),
        "tokens.stored.tokens",
        "tokens.fp32.tokens",
    }
    assert decoder.error["prefill.fp32.max_abs"] > 0


def test_the_last_words_say_what_to_type(exports: Exports):
    done = exports.export(schemes=("fp32",))
    assert shlex.split(done.next_command) == ["edge", "run", str(done.path), "PICTURE", example.QUESTION]
    assert done.seconds > 0


def test_a_place_with_spaces_can_be_typed(recorded, tmp_path):
    done = recorded(tmp_path / "my bundle")
    assert shlex.split(done.next_command)[2] == str(tmp_path / "my bundle")


# the truth that golden holds


@torch.inference_mode()
def test_golden_is_what_transformers_compute(exports: Exports):
    """From the files, through code that shares nothing with ours but the pixels and the prompt's ids."""
    path, state = exports.bundle(schemes=("fp32",)), load_file(exports.checkpoint() / "model.safetensors")
    state = {name: values.float() for name, values in state.items()}
    golden = golden_of(path)
    rows = projected(state, torch.from_numpy(golden.pixel_values))
    np.testing.assert_allclose(golden.fp32.image_embeds, rows, atol=1e-5)

    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        max_position_embeddings=1024,
    )
    llama = LlamaForCausalLM(config).eval()
    rest = {name: values for name, values in state.items() if not name.startswith((TOWER, PROJECTOR))}
    llama.load_state_dict(rest, strict=True)
    cut = manifest_of(path)["prompt"]["golden"]["segments"]
    table = state["model.embed_tokens.weight"]
    x = torch.cat([rows[0] if ids is None else table[ids] for ids in cut])[None]
    tokens = []
    for step in range(16):
        logits = llama(inputs_embeds=x).logits[0, -1]
        if step == 0:
            np.testing.assert_allclose(golden.fp32.logits, logits, atol=1e-4)
        tokens.append(int(logits.argmax()))
        x = torch.cat([x, table[tokens[-1]][None, None]], dim=1)
    assert golden.fp32.tokens.tolist() == tokens
    assert golden.stored.tokens.tolist() == tokens


def projected(state, pixels):
    """CLIP up to its last layer but one without CLS, then LDPv2 as its paper draws it."""
    config = CLIPVisionConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=1, image_size=336, patch_size=14
    )
    clip = CLIPVisionModel(config).eval()
    own = {name.removeprefix(TOWER): values for name, values in state.items() if name.startswith(TOWER)}
    names = {name.removeprefix("vision_model."): name for name in clip.state_dict()}
    clip.load_state_dict({names[name]: values for name, values in own.items()}, strict=True)
    x = clip(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    weight = lambda name: state[PROJECTOR + name]  # noqa: E731
    x = torch.nn.functional.gelu(x @ weight("mlp.mlp.0.weight").T + weight("mlp.mlp.0.bias"))
    x = x @ weight("mlp.mlp.2.weight").T + weight("mlp.mlp.2.bias")  # [1, 576, 64]
    x = x.view(1, 12, 2, 12, 2, 64).mean(dim=(2, 4)).permute(0, 3, 1, 2)  # [1, 64, 12, 12]
    y = torch.nn.functional.conv2d(x, weight("peg.peg.0.weight"), weight("peg.peg.0.bias"), padding=1, groups=64)
    return (x + y).flatten(2).transpose(1, 2)


# the tolerances catch what a converter gets wrong


def nibbles(packed):
    return (packed << 4) | (packed >> 4)


def rope(theta, length=1024):
    cos, sin = (table.numpy() for table in Rope(16, theta).tables(length))
    return {"cos_cache": cos, "sin_cache": sin}


def swapped(numbers, one, other):
    return {one: numbers[other], other: numbers[one]}


W4 = "decoder.layers.1.o_proj.weight"
FP32 = "decoder.layers.1.o_proj.weight.T"
EYE = "tower.layers.1.self_attn.out_proj"
LIES = {
    "w4: nibbles swapped": ((), "decoder", lambda w: {f"{W4}.int4": nibbles(w[f"{W4}.int4"])}),
    "w4: blocks swapped": ((), "decoder", lambda w: {f"{W4}.int4": w[f"{W4}.int4"][:, ::-1]}),
    "w4: scales one row off": ((), "decoder", lambda w: {f"{W4}.scale": np.roll(w[f"{W4}.scale"], 1, axis=0)}),
    "w4: zero point one off": ((), "decoder", lambda w: {f"{W4}.int4": w[f"{W4}.int4"] ^ 0x11}),
    "w4: another theta": ((), "decoder", lambda w: rope(20000.0)),
    "w8a8: all scales one row off": (
        (),
        "vision",
        lambda w: {name: np.roll(v, 1) for name, v in w.items() if name.endswith("weight.scale")},
    ),
    "w8a8: no bias anywhere": (
        (),
        "vision",
        lambda w: {name: np.zeros_like(v) for name, v in w.items() if name.endswith("bias") and "norm" not in name},
    ),
    "w8a8: a weight transposed": (
        (),
        "vision",
        lambda w: {name: v.T for name, v in w.items() if name == f"{EYE}.weight.int8"},
    ),
    "fp32: a weight transposed": (("fp32",), "decoder", lambda w: {FP32: w[FP32].T}),
    "fp32: one weight a thousandth off": (("fp32",), "decoder", lambda w: {FP32: w[FP32] * np.float32(1.001)}),
    "fp32: a bias missing": (("fp32",), "vision", lambda w: {f"{EYE}.bias": np.zeros_like(w[f"{EYE}.bias"])}),
    "fp32: key and value swapped": (
        ("fp32",),
        "vision",
        lambda w: swapped(w, *(f"tower.layers.1.self_attn.{p}_proj.weight.T" for p in "kv")),
    ),
    "fp32: gate and up swapped": (
        ("fp32",),
        "decoder",
        lambda w: {(n := "decoder.layers.0.gate_up_proj.weight.T"): np.roll(w[n], 96, axis=1)},
    ),
    "fp32: another theta": (("fp32",), "decoder", lambda w: rope(10100.0)),
    "fp32: positions of CLS last": (
        ("fp32",),
        "vision",
        lambda w: {(n := "tower.embeddings.position_embedding.weight"): np.roll(w[n], -1, axis=0)},
    ),
    "fp16: not a number": (("fp16",), "decoder", lambda w: {"decoder.norm.weight": np.full(64, np.nan, np.float32)}),
}


@pytest.mark.parametrize(("schemes", "part", "numbers"), LIES.values(), ids=LIES.keys())
def test_a_graph_of_other_numbers_is_found(exports: Exports, tmp_path, schemes, part, numbers):
    true = exports.bundle(schemes=schemes)
    bundle = lying(true, tmp_path / "lying", part, numbers(weights(true, part)))
    stages = {"vision"} if part == "vision" else {"prefill", "tokens"}
    found = failed(verify(Bundle.open(bundle), threads=1))
    assert found
    assert found <= {(stage, "stored") for stage in stages}  # and nothing else is blamed


def test_a_table_of_other_rows_is_found(exports: Exports, tmp_path):
    from exported import vouch

    for schemes in (("fp32",), ()):
        bundle = shutil.copytree(exports.bundle(schemes=schemes), tmp_path / f"lying{len(schemes)}")
        np.save(bundle / "embed_tokens.npy", np.roll(np.load(bundle / "embed_tokens.npy"), 1, axis=0))
        vouch(bundle)
        assert ("prefill", "stored") in failed(verify(Bundle.open(bundle), threads=1))


def test_a_quantiser_that_stores_another_order_fails_the_export(exports: Exports, tmp_path, monkeypatch):
    true = lower._stored_bits
    monkeypatch.setattr(lower, "_stored_bits", lambda packed: nibbles(true(packed)))
    request = ExportRequest(str(exports.checkpoint()), tmp_path / "out", schemes=("fp32", "decoder=w4"), threads=1)
    with pytest.raises(ParityError, match=r"the exported prefill is not the same model.*against stored"):
        export(request, lambda stage, done: None)
    assert list(tmp_path.iterdir()) == []


def test_a_quantiser_that_stores_other_scales_fails_the_export(exports: Exports, tmp_path, monkeypatch):
    class Rolled(quantize.PerChannel):
        """Says one thing, and stores another."""

        def dequantized(self):
            return self.values.float() * self.scales.roll(1)[:, None]

    true = quantize.per_channel
    monkeypatch.setattr(
        quantize, "per_channel", lambda weight: Rolled(true(weight).values, true(weight).scales.roll(-1))
    )
    request = ExportRequest(str(exports.checkpoint()), tmp_path / "out", schemes=("fp32", "vision=w8a8"), threads=1)
    with pytest.raises(ParityError, match=r"the exported vision is not the same model.*against stored"):
        export(request, lambda stage, done: None)
    assert list(tmp_path.iterdir()) == []


# a failure leaves nothing; what was there stays


@pytest.fixture
def recorded(exports: Exports, monkeypatch):
    """An export that writes again what an earlier one wrote, so that only what is around it happens: the call."""
    path = exports.bundle()

    def again(checkpoint, to, picture, question, folder, *rest):
        manifest = Bundle.open(path).manifest
        for file in (*(file for part in manifest.parts for file in part.files), manifest.tokenizer):
            shutil.copy(path / file.path, folder / file.path)
        parts = tuple(replace(part, error={}) for part in manifest.parts)
        return Built(parts, golden_of(path), manifest.golden_prompt["segments"])

    monkeypatch.setattr(exporting, "build", again)

    def call(output, **request):
        asked = ExportRequest(str(exports.checkpoint()), output, threads=1, **request)
        return export(asked, lambda stage, done: None)

    return call


def test_a_recorded_export_is_like_a_real_one(exports: Exports, recorded, tmp_path):
    done = recorded(tmp_path / "out")
    assert done.report.ok
    real, again = (manifest_of(path) for path in (exports.bundle(), done.path))
    assert again == real
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_bundle_is_replaced_only_by_a_good_one(recorded, tmp_path):
    old = write_bundle(tmp_path / "out", name="old").path
    before = files_of(old)
    with pytest.raises(ParityError, match=r"quantising costs the (vision|prefill) .* more than 1e-06"):
        recorded(old, max_loss=1e-6)
    assert files_of(old) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    recorded(old, max_loss=0.9)
    assert Bundle.open(old).manifest.name != "old"
    assert not set(before) & {path.relative_to(old) for path in old.iterdir()} - {
        Path("manifest.json"),
        Path("tokenizer.json"),
        Path("golden.npz"),
        Path("vision.onnx"),
        Path("decoder.onnx"),
        Path("decoder.onnx.data"),
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("loss", [float("nan"), -1.0])
def test_a_loss_that_nothing_keeps(recorded, tmp_path, loss):
    with pytest.raises(EdgeError):
        recorded(tmp_path / "out", max_loss=loss)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_bundle_is_not_touched(exports: Exports, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    before = files_of(tmp_path)
    request = ExportRequest(str(exports.checkpoint()), tmp_path / "out", threads=1)
    with pytest.raises(UsageError, match="exists and is not a bundle"):
        export(request, lambda stage, done: None)
    assert files_of(tmp_path) == before


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("where", "what"),
    [
        (Golden, "save"),
        (exporting.bundles, "write_manifest"),
        (exporting, "_with_errors"),  # between the two manifests
    ],
    ids=["golden", "manifest", "second manifest"],
)
def test_a_disk_that_fills_up_leaves_the_old_bundle(recorded, tmp_path, monkeypatch, where, what):
    before = files_of(write_bundle(tmp_path / "out").path)
    monkeypatch.setattr(where, what, full)
    with pytest.raises(EdgeError, match="no space left while writing") as caught:
        recorded(tmp_path / "out")
    assert caught.value.hint == "free some space and repeat"
    assert files_of(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_disk_that_fills_up_while_a_graph_is_written(exports: Exports, tmp_path, monkeypatch):
    def half(model, path, **options):
        path.write_bytes(b"half a graph")
        full()

    monkeypatch.setattr(onnx_ir, "save", half)
    request = ExportRequest(str(exports.checkpoint()), tmp_path / "out", schemes=("fp32",), threads=1)
    with pytest.raises(EdgeError, match="no space left while writing"):
        export(request, lambda stage, done: None)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_full_is_told_before_the_work(exports: Exports, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(EdgeError, match=r"the bundle takes about 0\.00 GB, and 0\.00 GB are free"):
        export(ExportRequest(str(exports.checkpoint()), tmp_path / "out"), lambda stage, done: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [EngineError("no engine"), RuntimeError("a bug"), KeyboardInterrupt(), SystemExit(143)]
)
def test_whatever_stops_an_export_leaves_nothing(recorded, tmp_path, monkeypatch, error):
    def stop(bundle, threads):
        raise error

    monkeypatch.setattr(exporting, "verify", stop)
    with pytest.raises(type(error)):
        recorded(tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists() or list((tmp_path / "deep").iterdir()) == []


MAIN = "from edge.cli import main; raise SystemExit(main())"


def started(checkpoint, output):
    """The command as a process, in the middle of its work: one part is written, the other is not."""
    command = [sys.executable, "-c", MAIN, "export", str(checkpoint), "-o", str(output), "--scheme", "fp32", "-t", "1"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not list(output.parent.glob(f".{output.name}.partial-*/vision.onnx")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


def test_a_polite_kill_leaves_nothing(exports: Exports, tmp_path):
    before = files_of(write_bundle(tmp_path / "out").path)
    with started(exports.checkpoint(), tmp_path / "out") as process:
        process.send_signal(signal.SIGTERM)
        said, complained = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert said == b""
    assert b"Traceback" not in complained
    assert files_of(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_hard_kill_leaves_is_swept_by_the_next_export(exports: Exports, recorded, tmp_path):
    with started(exports.checkpoint(), tmp_path / "out") as process:
        process.kill()
    (left,) = tmp_path.iterdir()
    assert left.name == f".out.partial-{process.pid}"
    recorded(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


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
