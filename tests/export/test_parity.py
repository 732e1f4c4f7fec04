"""The proof: golden is the truth, and a part that holds other numbers than it should is found."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from exported import Exports, failed, golden_of, lying, manifest_of, vouch, weights
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from edge.bundle.manifest import Bundle
from edge.errors import ParityError
from edge.verify import verify
from exporters.export import ExportRequest, export
from exporters.formats.onnx import lower
from exporters.models.attention import Rope
from exporters.quantization import integers

TOWER = "model.vision_tower.vision_tower.vision_model."
PROJECTOR = "model.mm_projector."


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
    broken = any(np.isnan(values).any() for values in numbers(weights(true, part)).values())
    against = {"stored", "fp32"} if broken else {"stored"}  # NaN is no cost: it fails whatever it is compared with
    found = failed(verify(Bundle.open(bundle), threads=1))
    assert found
    assert found <= {(stage, reference) for stage in stages for reference in against}  # and nothing else is blamed


def test_a_table_of_other_rows_is_found(exports: Exports, tmp_path):
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
    class Rolled(integers.PerChannel):
        """Says one thing, and stores another."""

        def dequantized(self):
            return self.values.float() * self.scales.roll(1)[:, None]

    true = integers.per_channel
    monkeypatch.setattr(
        integers, "per_channel", lambda weight: Rolled(true(weight).values, true(weight).scales.roll(-1))
    )
    request = ExportRequest(str(exports.checkpoint()), tmp_path / "out", schemes=("fp32", "vision=w8a8"), threads=1)
    with pytest.raises(ParityError, match=r"the exported vision is not the same model.*against stored"):
        export(request, lambda stage, done: None)
    assert list(tmp_path.iterdir()) == []
