"""Single linear layers in a wider scheme than their part's, in every format."""

from __future__ import annotations

from pathlib import Path

import gguf
import onnx
import pytest
import torch
from small_models import logits_after, write

from edge import plugins
from edge.bundle.manifest import Bundle
from edge.decoders.kv_graph import kv_decoder
from edge.engines import open_part
from edge.errors import UsageError
from edge.recipes import Recipe, Target
from edge.types import OpenOptions, PartFiles, Tokens
from edge.verify import distance
from exporters import preview, standin, targets
from exporters.evaluators import mil
from exporters.export import ExportRequest, export
from exporters.formats import Job, linears
from exporters.models.decoders import llama
from exporters.models.vision.clip import TowerConfig
from exporters.sources.checkpoint import open_checkpoint
from exporters.standin.random_weights import Shape
from exporters.widening import check, extra_bytes, ladder

FORMATS = targets.FORMATS
TOWER = TowerConfig(image_size=56, patch_size=14, hidden=64, layers=3, heads=1, ffn=128)
DECODER = llama.Config(layers=2, hidden=256, ffn=512, heads=4, kv_heads=2, head_dim=64, vocab=512, context=256)
OPTIONS = OpenOptions(threads=1, context=DECODER.context)
ENGINES = {"onnx": "onnxruntime", "tflite": "litert", "executorch": "executorch", "gguf": "llamacpp"}
IDS = (1, 17, 300, 42, 9, 255, 3)
# A part's linear layers, each for one step of a ladder; the others stay as they are.
LAYERS = {
    "vision": [f"tower.layers.{n}.mlp.fc{m}.weight" for n in (0, 1) for m in (1, 2)],
    "decoder": [f"layers.{n}.{name}_proj.weight" for n in (0, 1) for name in ("gate_up", "down")],
}
LAYERS["mmproj"] = LAYERS["vision"]
CASES = [
    (format, role, scheme)
    for format, role, scheme in (
        ("onnx", "vision", "w8a8"),
        ("onnx", "decoder", "w4"),
        ("onnx", "decoder", "w4a16"),
        ("tflite", "vision", "w8a8"),
        ("tflite", "decoder", "w4"),
        ("tflite", "decoder", "legacy"),
        ("executorch", "vision", "w8a8"),
        ("executorch", "decoder", "8da4w"),
        ("coreml", "vision", "w4"),
        ("coreml", "decoder", "pal4"),
        ("gguf", "decoder", "q4_0"),
        ("gguf", "decoder", "q4_k_m"),
        ("gguf", "mmproj", "q8_0"),
    )
]
# Bytes of a weight of one layer, its scales with it.
BYTES = {
    "onnx": {"w8a8": 1.0, "w4": 0.625, "w8": 1.125, "fp16": 2, "fp32": 4, "w4a16": 0.5625, "w16a16": 2},
    "tflite": {"w8a8": 1.0, "w4": 0.5625, "w8": 1.0, "legacy": 1.0, "fp16": 2, "fp32": 4},
    "executorch": {"w8a8": 1.0, "8da4w": 0.5625, "w8": 1.0, "fp32": 4},
    "coreml": {"w4": 0.5625, "pal4": 0.5, "w8": 1.0, "fp16": 2},
    "gguf": {"q4_0": 0.5625, "q6_k": 0.8203, "q8_0": 1.0625, "f16": 2, "f32": 4},
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("widened") / "checkpoint"
    standin.write(path, Shape(TOWER, DECODER), projector="mlp2x_gelu")
    return path


@pytest.fixture(scope="module")
def checkpoint(folder):
    return open_checkpoint(str(folder))


def component_of(checkpoint, role):
    return checkpoint.components["decoder"] if role == "decoder" else checkpoint.encoder.of(role)


def widened_of(format, role, scheme):
    steps = ladder(format, role, scheme)
    assert 1 <= len(steps) <= len(LAYERS[role])
    return dict(zip(LAYERS[role], steps, strict=False))


def written(format, role, scheme, widened, checkpoint, folder):
    component = component_of(checkpoint, role)
    module = component.load(checkpoint.weights)
    check(Job(component, scheme, folder, checkpoint, widened=widened), format)
    done = write(
        plugins.load(FORMATS, format), component, module, scheme, folder, checkpoint=checkpoint, widened=widened
    )
    return module, done


def opened(format, role, scheme, done, checkpoint):
    spec = checkpoint.spec.decoder if role == "decoder" else None
    covers = ("decoder",) if role == "decoder" else ("vision", "projector")
    part = PartFiles(format, scheme, covers, done.files, done.inputs, done.outputs, spec)
    if format == "coreml":
        return mil.evaluate(part, OPTIONS, "fp16")
    found = open_part(part, ENGINES[format], OPTIONS)
    return kv_decoder(found, part, spec, OPTIONS.context) if (format, role) == ("onnx", "decoder") else found


@torch.inference_mode()
def computed(engine, module, role):
    """What the engine gives, and what the module does with its weights as stored."""
    if role == "decoder":
        rows = module.embed_tokens(torch.tensor([IDS]))
        return engine.extend([Tokens(IDS)]), logits_after(module, [rows])[0]
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(1, 3, TOWER.image_size, TOWER.image_size, generator=generator)
    return engine.run({"pixel_values": pixels.numpy()})["image_embeds"], module(pixels).numpy()


def total(done):
    return sum(path.stat().st_size for path in done.files)


@pytest.mark.parametrize(("format", "role", "scheme"), CASES)
def test_each_step_of_the_ladder_is_stored_and_computed(format, role, scheme, checkpoint, tmp_path):
    widened = widened_of(format, role, scheme)
    for name in ("usual", "wider"):
        (tmp_path / name).mkdir()
    usual, plain = written(format, role, scheme, {}, checkpoint, tmp_path / "usual")
    module, done = written(format, role, scheme, widened, checkpoint, tmp_path / "wider")

    original = component_of(checkpoint, role).load(checkpoint.weights).state_dict()
    for name in linears(usual):
        before, after = (((m.state_dict()[name] - original[name]).norm()).item() for m in (usual, module))
        if name not in widened:
            assert before == after
        elif widened[name] in ("fp16", "f16", "fp32", "f32"):
            assert before > after == 0  # the checkpoint is of half precision
        else:
            assert after < before, name

    if format != "gguf" or scheme in BYTES["gguf"]:  # a mix stores a layer as it likes
        sizes = dict(module.named_parameters())
        each = BYTES[format]
        more = sum(sizes[name].numel() * (each[wider] - each[scheme]) for name, wider in widened.items())
        assert total(done) - total(plain) == pytest.approx(more, rel=0.03, abs=2000 * len(widened))  # scales

    if role != "mmproj":
        found, expected = computed(opened(format, role, scheme, done, checkpoint), module, role)
        error, tolerance = distance(found, expected), plugins.facts(FORMATS, format)["SCHEMES"][role][scheme]
        assert error["cosine"] >= tolerance["cosine"], error


@pytest.mark.parametrize(("format", "role"), [("onnx", "vision"), ("onnx", "decoder"), ("gguf", "decoder")])
def test_what_is_foreseen_is_written(format, role, checkpoint, tmp_path):
    scheme = {"vision": "w8a8", "decoder": "w4"}[role] if format == "onnx" else "q4_0"
    widened = widened_of(format, role, scheme)
    _, plain = written(format, role, scheme, {}, checkpoint, tmp_path)
    before = total(plain)
    _, done = written(format, role, scheme, widened, checkpoint, tmp_path)
    to = {"vision": Target("onnx", "w8a8"), "decoder": Target("onnx", "w4"), role: Target(format, scheme)}
    sizes = [
        preview.manifest(checkpoint, Recipe("custom", to), widened=chosen).part(role).size
        for chosen in ({}, {role: widened})
    ]
    assert sizes[1] - sizes[0] == pytest.approx(total(done) - before, rel=0.06)


def test_onnx_names_the_operator_of_each(checkpoint, tmp_path):
    _, done = written("onnx", "vision", "w8a8", widened_of("onnx", "vision", "w8a8"), checkpoint, tmp_path)
    graph = onnx.load(done.files[0]).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert kinds["tower.layers.0.mlp.fc1.weight.int8"] == onnx.TensorProto.UINT8  # w8: blocks
    assert kinds["tower.layers.0.mlp.fc2.weight.T"] == onnx.TensorProto.FLOAT16
    assert kinds["tower.layers.1.mlp.fc1.weight.T"] == onnx.TensorProto.FLOAT
    assert kinds["tower.layers.1.mlp.fc2.weight.int8"] == onnx.TensorProto.INT8


def test_gguf_translates_a_layer_into_its_tensors(checkpoint, tmp_path):
    widened = {"layers.0.qkv_proj.weight": "q8_0", "layers.1.gate_up_proj.weight": "f16", "lm_head.weight": "f32"}
    _, done = written("gguf", "decoder", "q4_0", widened, checkpoint, tmp_path)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(done.files[0]).tensors}
    assert {kinds[f"blk.0.attn_{piece}.weight"] for piece in "qkv"} == {"Q8_0"}
    assert {kinds[f"blk.1.ffn_{piece}.weight"] for piece in ("gate", "up")} == {"F16"}
    assert kinds["output.weight"] == "F32" and kinds["blk.1.attn_q.weight"] == "Q4_0"


def test_an_export_says_so_and_is_proven(folder, tmp_path):
    widened = {"vision": {LAYERS["vision"][0]: "w8"}, "decoder": {LAYERS["decoder"][1]: "fp16"}}
    done = export(ExportRequest(str(folder), tmp_path / "out", threads=1, widened=widened), lambda *_: None)
    assert done.report.ok
    manifest = Bundle.open(done.path).manifest
    assert manifest.recipe == "custom"
    assert manifest.part("vision").options == {"widened": widened["vision"]}
    assert manifest.part("decoder").options == {"widened": widened["decoder"]}


@pytest.mark.parametrize(
    ("weight", "scheme", "match", "hint"),
    [
        ("layers.9.down_proj.weight", "w8", "no linear layer whose weight is 'layers.9.down_proj.weight'", "layers.0"),
        ("norm.weight", "w8", "no linear layer", "layers.0"),
        ("layers.0.down_proj.weight", "w8a8", "onnx cannot store .* 'w8a8' among w4", "w8, fp16, fp32"),
        ("layers.0.down_proj.weight", "w4", "'w4' among w4", "w8, fp16, fp32"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(weight, scheme, match, hint, folder, tmp_path):
    request = ExportRequest(str(folder), tmp_path / "out", widened={"decoder": {weight: scheme}})
    with pytest.raises(UsageError, match=match) as refused:
        export(request, lambda *_: None)
    assert hint in str(refused.value.hint)
    assert not (tmp_path / "out").exists()


def test_a_layer_in_half_precision_is_bounded_by_it(checkpoint):
    job = Job(
        component_of(checkpoint, "decoder"), "w4", Path(), checkpoint, widened={"layers.0.down_proj.weight": "fp16"}
    )
    for format in ("onnx", "tflite"):
        bounds = plugins.load(FORMATS, format).bounds(job)
        assert bounds["layers.0.down_proj.weight"] == 65520.0
    assert set(plugins.load(FORMATS, "onnx").bounds(job)) == {"layers.0.down_proj.weight"}


def test_nothing_is_wider_without_a_word(checkpoint):
    job = Job(component_of(checkpoint, "decoder"), "w4", Path(), checkpoint)
    assert extra_bytes(job, "onnx") == 0
    assert job.stored("layers.0.down_proj.weight") == "w4"
    assert ladder("onnx", "decoder", "fp32") == () == ladder("onnx", "mmproj", "q8_0")
