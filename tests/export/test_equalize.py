"""Equalising: the function stays, outliers go, and what has none is not touched."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported import Exports
from gguf import quants
from onnx import helper, reference
from PIL import Image
from small_models import randomized
from torch import nn

from edge import plugins
from edge.errors import CheckpointError
from edge.inputs import image
from edge.inputs.calibration import Record
from edge.recipes import Target
from exporters import calibration_sample, targets
from exporters.equalizer import equalised, look
from exporters.formats.executorch import linears
from exporters.models import folding, projectors
from exporters.models.attention import GrowingCache
from exporters.models.decoders import LanguageModel, llama, qwen3
from exporters.models.encoder import Encoder
from exporters.models.layers import Linear
from exporters.models.projectors import ProjectorConfig, mlp
from exporters.models.vision import clip, siglip
from exporters.pipeline import components
from exporters.quantization import equalize, importance, rounding
from exporters.quantization.equalize import equalize as run
from exporters.quantization.observed import observe
from exporters.quantization.rounding import Rounding
from exporters.sources.checkpoint import open_checkpoint

FLOATS = {"fp32", "fp16", "f16", "bf16", "w16a16"}
KINDS = sorted(
    {
        how
        for format, table in rounding.WEIGHTS.items()
        for scheme in table
        if (how := rounding.of(format, scheme)).integers
    }
)


def rows(seed=1, count=40, columns=96):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, columns, generator=generator) * torch.rand(count, 1, generator=generator) * 3 + 0.4


# What is rounded how, against those who do it.


def test_the_table_knows_every_scheme():
    for format in plugins.names(targets.FORMATS):
        for table in targets.schemes(format).values():
            for scheme in table:
                assert rounding.of(format, scheme).integers == (scheme not in FLOATS), (format, scheme)


def test_a_tensor_is_rounded_as_by_onnx():
    x = rows()
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero"])
    given = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(x.shape))]
    made = [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in ("y", "scale", "zero")]
    y, scale, zero = reference.ReferenceEvaluator(helper.make_model(helper.make_graph([node], "g", given, made))).run(
        None, {"x": x.numpy()}
    )
    expected = (y.astype(np.float32) - zero) * scale
    some = x[::3]  # the range is that of all rows
    found = rounding.activations(some, x.amin(0), x.amax(0), "tensor")
    assert np.abs(found.numpy() - expected[::3]).max() <= scale * 1.001  # a tie may go either way
    assert np.mean(np.isclose(found.numpy(), expected[::3], atol=1e-6)) > 0.99


def test_a_row_is_rounded_as_by_executorch():
    x = rows()
    found = rounding.activations(x, x.amin(0), x.amax(0), "row")
    expected = linears._per_token(x)
    assert float((found - expected).abs().max()) <= float((x.amax() - x.amin()) / 255) * 1.001
    assert float(torch.isclose(found, expected, atol=1e-6).float().mean()) > 0.99


def test_blocks_are_rounded_as_by_ggml():
    x = rows(columns=64)
    expected = quants.dequantize(quants.quantize(x.numpy(), quants.GGMLQuantizationType.Q8_0), 8)
    found = rounding.activations(x, x.amin(0), x.amax(0), "block")
    np.testing.assert_allclose(found.numpy(), expected, atol=float(x.abs().max()) / 127 * 0.51)
    odd = rounding.activations(x[:, :50], x.amin(0), x.amax(0), "block")
    assert odd.shape == (40, 50) and torch.equal(odd[:, :32], found[:, :32])
    assert rounding.activations(x, x.amin(0), x.amax(0), "none") is x


# Whole modules, with outliers and without.


def small_encoder(family=clip, **changes):
    torch.manual_seed(0)
    tower = family.Tower(replace(family.tiny().config, **changes))
    shape = ProjectorConfig(tower.config.hidden, 24, tower.config.grid, depth=2)
    module = randomized(Encoder(tower, mlp.Projector(projectors.configure(mlp, shape, {}))))
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):  # a constant that outweighs what varies would be worth a shift
            parameter.data *= 0.1
    return module


def small_decoder(family=llama):
    torch.manual_seed(0)
    return randomized(family.tiny())


MODULES = {
    "clip": small_encoder,
    "siglip": lambda: small_encoder(siglip, select_layer=None),
    "llama": small_decoder,
    "qwen3": lambda: small_decoder(qwen3),
}


def passes(module, count=3):
    generator = torch.Generator().manual_seed(6)
    if isinstance(module, LanguageModel):
        c = module.config
        given = [torch.randn(1, 20, c.hidden, generator=generator) for _ in range(count)]
        return {
            f"conversation {i}": lambda x=x: module(x, GrowingCache(c.heads, c.kv_heads, c.rope), everywhere=True)
            for i, x in enumerate(given)
        }
    size = module.tower_config.image_size
    given = [torch.randn(1, 3, size, size, generator=generator) for _ in range(count)]
    return {f"image {i}": lambda x=x: module(x) for i, x in enumerate(given)}


def watched(module, count=3):
    return observe(module, equalize.readers(module), passes(module, count), 64)


@torch.inference_mode()
def results(module):
    return torch.cat([compute().flatten() for compute in passes(module).values()])


def spoil(module, factor):
    """Three outlier channels in every fold that scales."""
    generator = torch.Generator().manual_seed(8)
    for fold in folding.folding(module).folds:
        count = len(fold.rows(module.get_submodule(fold.source).weight))
        scale = torch.ones(count)
        scale[torch.randperm(count, generator=generator)[:3]] = 1 / factor
        if fold.scales:
            folding.apply(module, fold, scale)
    return module


def same(found, expected, digits=1e-5):
    torch.testing.assert_close(found, expected, rtol=digits, atol=digits * float(expected.abs().max()))


@torch.inference_mode()
def errors(module, how, absolute=False):
    """Of every layer behind a fold, both sides rounded: the root mean square of each output's, by the output's own."""
    found = {}
    for path, seen in watched(module).items():
        weight, x = module.get_parameter(f"{path}.weight"), torch.cat(seen.rows)
        parts = zip(seen.rows, seen.least, seen.largest, strict=True)
        rounded = torch.cat([rounding.activations(*part, how.activations) for part in parts])
        wanted = x @ weight.T
        error = (rounded @ rounding.weights(weight, how.weights).T - wanted).norm(dim=0)
        error = error if absolute else error / wanted.norm(dim=0)
        found[path] = float(error.square().mean().sqrt())
    return found


@pytest.mark.parametrize("how", KINDS, ids="-".join)
@pytest.mark.parametrize("name", ["clip", "llama", "qwen3"])
def test_what_has_no_outliers_is_left_as_it_is(name, how):
    module = MODULES[name]()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    assert run(module, watched(module), how) == {}
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


OF_ENCODERS = (Rounding("tensor", "row8"), Rounding("row", "row8"), Rounding("none", "row8"))
OF_DECODERS = (Rounding("block", "block4"), Rounding("row", "block4"), Rounding("row", "tensor8"))


@pytest.mark.parametrize("factor", [30, 1000])
@pytest.mark.parametrize(
    ("name", "how"), [*product(("clip", "siglip"), OF_ENCODERS), *product(("llama", "qwen3"), OF_DECODERS)]
)
def test_outliers_go_and_the_function_stays(name, how, factor):
    clean = errors(MODULES[name](), how)
    module = spoil(MODULES[name](), factor)
    before, spoilt = results(module), errors(module, how)
    made = run(module, watched(module), how)
    assert made
    same(results(module), before)
    found = errors(module, how)
    assert max(spoilt.values()) > 2 * max(clean.values())
    for path, error in found.items():
        assert error < 1.6 * clean[path] + 1e-4, path  # scales are powers of two: not all is got back
    for choice in made.values():
        assert torch.equal(torch.exp2(choice.scale.log2().round()), choice.scale)
    assert run(module, watched(module), how) == {}  # nothing is left to do


def test_what_the_residual_stream_is_shifted_by_goes_into_a_bias():
    """Its scale is the norms', and cannot move; a constant can."""
    module, how = small_encoder(), Rounding("tensor", "row8")
    last = len(module.tower.layers) - 1
    module.tower.layers[last].mlp.fc2.bias[[3, 17]] += torch.tensor([400.0, -250.0])
    before, clean = results(module), errors(small_encoder(), how, absolute=True)["projector.0"]
    assert errors(module, how, absolute=True)["projector.0"] > 20 * clean
    made = run(module, watched(module), how)
    (fold,) = made
    assert (fold.source, fold.readers) == (f"tower.layers.{last}.mlp.fc2", ("projector.0",))
    assert made[fold].shift is not None and bool((made[fold].scale == 1).all())
    same(results(module), before)
    assert errors(module, how, absolute=True)["projector.0"] < 1.1 * clean


def test_a_channel_that_a_norm_silences_is_left_alone():
    module, how = spoil(small_encoder(), 100), Rounding("tensor", "row8")
    norm, read = module.tower.layers[0].layer_norm1, module.tower.layers[0].self_attn.q_proj
    norm.weight[5] = 0
    bias, column, before = norm.bias[5].clone(), read.weight[:, 5].clone(), results(module)
    made = run(module, watched(module), how)
    assert any(fold.source == "tower.layers.0.layer_norm1" for fold in made)
    assert (float(norm.weight[5]), float(norm.bias[5])) == (0, float(bias))
    assert torch.equal(read.weight[:, 5], column)
    same(results(module), before)


def test_no_parameter_outgrows_half_precision():
    """A column of tiny weights behind a huge channel could become anything."""
    module, how = small_encoder(), Rounding("tensor", "row8")
    layer = module.tower.layers[0]
    layer.layer_norm2.weight[4], layer.layer_norm2.bias[4] = 1e9, 0
    layer.mlp.fc1.weight[:, 4] = 1e-12
    layer.mlp.fc1.weight[0, 4] = 6e3
    run(module, watched(module), how)
    assert float(layer.mlp.fc1.weight.abs().max()) <= equalize.LARGEST
    assert float(layer.layer_norm2.weight.abs().max()) <= 1e9


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_importance_follows(name):
    how, module = Rounding("row", "block4"), spoil(MODULES[name](), 200)
    generator = torch.Generator().manual_seed(2)
    sequences = [torch.randn(1, 9, module.config.hidden, generator=generator) for _ in range(2)]
    matters = importance.measure(module, sequences)
    made = run(module, watched(module), how, matters)
    assert made
    found, anew = equalize.following(matters, made), importance.measure(module, sequences)
    assert found.keys() == anew.keys()
    for name, expected in anew.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6 * float(expected.max()))
    assert any(not torch.equal(found[name], matters[name]) for name in found)


def test_importance_guides_the_choice():
    """Columns that are said to matter are those whose rounding counts."""
    module, how = spoil(small_decoder(), 50), Rounding("none", "block4")
    some = {"layers.0.qkv_proj.weight": torch.rand(64, generator=torch.Generator().manual_seed(3))}
    assert run(module, watched(module), how, some)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["clip", "llama"])
def test_an_activation_that_is_not_finite_is_named(name, value):
    module = MODULES[name]()
    module.get_parameter(equalize.readers(module)[4] + ".weight").fill_(value)
    with pytest.raises(CheckpointError, match=r"is multiplied with is NaN or infinite on (image|conversation) 0"):
        watched(module)
    assert all(not layer._forward_pre_hooks for layer in module.modules())


def test_massive_rows_are_kept():
    module = nn.Sequential(Linear(64, 4))
    x = torch.zeros(1, 300, 64)
    x[0, 171, 9] = 1e4
    seen = observe(module, ["0"], {"it": lambda: module(x)}, 8)["0"]
    assert len(seen.rows) == 1 and len(seen.rows[0]) <= 9
    assert float(seen.rows[0].max()) == float(seen.largest[0][9]) == 1e4


@pytest.mark.parametrize("name", ["clip", "llama"])
def test_one_image_or_one_text_is_enough(name):
    module, how = spoil(MODULES[name](), 100), Rounding("row", "row8")
    before, spoilt = results(module), errors(module, how)
    if name == "llama":
        ids = torch.tensor([[1, 30, 41, 52, 8]])
        rows, c = module.embed_tokens(ids), module.config
        one = {"text": lambda: module(rows, GrowingCache(c.heads, c.kv_heads, c.rope), everywhere=True)}
        made = run(module, observe(module, equalize.readers(module), one, 64), how)
    else:
        made = run(module, watched(module, 1), how)
    assert len(made) > 5
    same(results(module), before)
    found = errors(module, how)
    assert all(found[fold.readers[0]] < spoilt[fold.readers[0]] / 1.5 for fold in made)


# As an export does it.


@pytest.fixture(scope="module")
def checkpoint(exports: Exports):
    return open_checkpoint(str(exports.checkpoint(projector="mlp2x_gelu")))


def images(checkpoint, calibration=()):
    found = calibration_sample.samples(calibration)
    return {one.name: torch.from_numpy(image.pixels(one.image, checkpoint.spec.image)) for one in found}


def test_samples_pass_once_and_tell_what_they_give(checkpoint):
    module = components(checkpoint)[0].load(checkpoint.weights)
    passed = []
    module.register_forward_hook(lambda *_: passed.append(1))
    shown = images(checkpoint)
    looked = look(module, shown)
    assert len(passed) == len(shown) == len(looked.exact)
    for sample, exact in zip(shown.values(), looked.exact, strict=True):
        assert torch.equal(module(sample), exact)


def test_floats_are_left_alone(checkpoint):
    module = spoil(components(checkpoint)[0].load(checkpoint.weights), 100)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    looked, matters = look(module, images(checkpoint)), {"a": torch.ones(1)}
    assert equalised(module, looked, Target("onnx", "fp16"), matters) == matters
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
    equalised(module, looked, Target("gguf", "q8_0"))
    assert any(not torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


def test_a_decoder_is_equalised(checkpoint):
    decoder = spoil(components(checkpoint)[1].load(checkpoint.weights), 100)
    stored = decoder.layers[0].qkv_proj.weight.clone()
    torch.manual_seed(1)
    looked = look(decoder, {"a conversation": torch.randn(1, 20, decoder.config.hidden)})
    assert looked.exact[0].shape == (1, 20, decoder.config.vocab)
    equalised(decoder, looked, Target("gguf", "q4_0"))
    assert not torch.equal(decoder.layers[0].qkv_proj.weight, stored)


def test_an_image_on_which_numbers_overflow_is_named(checkpoint, tmp_path):
    Image.new("RGB", (60, 40), (200, 10, 10)).save(tmp_path / "dog.png")
    module = components(checkpoint)[0].load(checkpoint.weights)
    module.tower.layers[1].layer_norm2.weight.fill_(math.inf)
    with pytest.raises(CheckpointError, match=r"tower\.layers\.1\.mlp\.fc1 is .*dog\.png"):
        look(module, images(checkpoint, [Record(tmp_path / "dog.png", "What?", "")]))


def test_the_users_images_come_once_each_and_are_few():
    records = [Record(Path(f"{index // 2 % 20}.png"), f"question {index}", "") for index in range(80)]
    found = calibration_sample.samples(records)
    assert [sample.image for sample in found] == [Path(f"{index}.png") for index in range(calibration_sample.MOST)]
    assert [sample.question for sample in found] == [
        f"question {2 * index}" for index in range(calibration_sample.MOST)
    ]
    assert len(calibration_sample.samples(records[:1])) == 1


def test_drawn_images_are_the_same_each_time_and_unlike_each_other():
    first, second = calibration_sample.samples([]), calibration_sample.samples([])
    assert len(first) == calibration_sample.MOST
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, second, strict=True))
    assert all(image.dtype == np.uint8 and image.ndim == 3 for _, image, _, _ in first)
    means = {tuple(np.asarray(sample.image).mean((0, 1)).round()) for sample in first}
    assert len(means) == len({sample.name for sample in first}) == len(first)


@pytest.mark.parametrize("columns", [64, 50])
def test_more_bits_lose_less(columns):
    weight = rows(count=20, columns=columns)
    lost = [
        float((rounding.weights(weight, kind) - weight).norm()) for kind in ("block4", "block5", "block6", "block8")
    ]
    assert lost == sorted(lost, reverse=True)
    assert lost[1] > 1.5 * lost[2] > 4 * lost[3]
    assert torch.equal(rounding.weights(weight, "float32"), weight)
    assert torch.equal(rounding.weights(weight, "float16"), weight.half().float())
