"""SigLIP's vision encoder against transformers' SiglipVisionModel, and in every format against torch."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SPEC
from small_models import randomized, write

from edge import plugins
from edge.engines import open_part
from edge.errors import CheckpointError, EdgeError
from edge.spec import VLMSpec
from edge.types import OpenOptions, PartFiles
from edge.verify import distance
from exporters.evaluators import mil
from exporters.models import projectors, vision
from exporters.models.component import Component
from exporters.models.encoder import Encoder
from exporters.models.projectors import ProjectorConfig
from exporters.models.vision import clip, siglip

OPTIONS = OpenOptions(threads=1, context=256)
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 42,
    "patch_size": 6,
}


def upstream(**changes):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(1)
    return randomized(SiglipVisionModel(SiglipVisionConfig(**{**SIZES, **changes})))


def ours(model, select_layer):
    config = siglip.from_config(model.config.to_dict(), select_layer=select_layer)
    state, keys = model.state_dict(), siglip.keys(config, "")
    tower = siglip.Tower(config).eval()
    tower.load_state_dict({name: state[keys[name].names[0]] for name in tower.state_dict()})
    return tower, set(state) - {key for source in keys.values() for key in source.names}


@pytest.mark.parametrize("select_layer", [-1, -2, -3, -4, 0, 1, 3, None])
@pytest.mark.parametrize("changes", [{}, {"hidden_act": "gelu"}, {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-3}])
@torch.inference_mode()
def test_hidden_states_are_those_of_transformers(select_layer, changes):
    """`hidden_states`, which LLaVA takes, come before the last norm; what the encoder gives by itself comes after."""
    model = upstream(**changes)
    pixels = torch.randn(2, 3, 42, 42)
    found = model(pixels, output_hidden_states=True)
    expected = found.last_hidden_state if select_layer is None else found.hidden_states[select_layer]
    tower, unused = ours(model, select_layer)
    torch.testing.assert_close(tower(pixels), expected, rtol=1e-5, atol=1e-5)
    assert tower.config.tokens == expected.shape[1] == 49

    assert all(re.fullmatch(siglip.ignored(tower.config), name) for name in unused)
    assert any("head." in name for name in unused)


def test_the_head_may_be_missing():
    _, unused = ours(upstream(vision_use_head=False), None)
    assert unused == set()


def test_defaults_are_those_of_transformers():
    from transformers import SiglipVisionConfig

    plain = SiglipVisionConfig()
    assert {name: getattr(plain, name) for name in siglip.DEFAULTS} == siglip.DEFAULTS
    found = siglip.from_config({})
    assert (found.grid, found.tokens, found.run_layers, found.cls) == (14, 196, 11, False)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"model_type": "clip_vision_model"}, "is a 'clip_vision_model'"),
        ({"num_attention_heads": 5}, "cannot be built"),
        ({"image_size": 10}, "cannot be built"),
        ({"image_size": [384, 384]}, r"image_size is \[384, 384\]"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0"),
        ({"num_channels": 1}, "num_channels is 1"),
    ],
)
def test_what_is_no_siglip_is_refused_by_name(config, match):
    with pytest.raises(CheckpointError, match=match):
        siglip.from_config(config)


def test_there_is_no_class_token_to_select():
    with pytest.raises(CheckpointError, match="no class token"):
        siglip.from_config({}, select_feature="cls_patch")


@pytest.mark.parametrize("name", plugins.names(vision.__name__))
def test_a_vision_encoder_is_found_by_each_model_type(name):
    for model_type in plugins.facts(vision.__name__, name)["MODEL_TYPES"]:
        module = vision.find(model_type)
        assert module.__name__ == f"{vision.__name__}.{name}"
        assert vision.family(module.tiny().config) is module


@pytest.mark.parametrize("model_type", [None, "dinov2", "siglip2", ["clip"]])
def test_an_unknown_vision_encoder_is_refused_with_the_legal_ones(model_type):
    with pytest.raises(CheckpointError, match="no vision encoder of the model_type") as caught:
        vision.find(model_type)
    assert "siglip_vision_model" in caught.value.hint


# In every format. 27 x 27 patches are what SigLIP-so400m has, and the LDP projectors pool them to 12 x 12 or 14 x 14.


def written(format, scheme, kind, grid, select_layer, folder):
    tower = siglip.TowerConfig(
        image_size=2 * grid,
        patch_size=2,
        hidden=32,
        layers=2,
        heads=2,
        ffn=64,
        select_layer=select_layer,
        skipped=int(kind == "mlp2x_gelu"),
    )
    projector, depth = projectors.find(kind)
    sizes = ProjectorConfig(inputs=32, hidden=64, grid=grid, depth=depth)

    def build():
        return Encoder(siglip.Tower(tower), projector.Projector(sizes))

    module = randomized(build())
    spec = VLMSpec(
        dataclasses.replace(SPEC.image, size=tower.image_size),
        dataclasses.replace(SPEC.prompt, image_tokens=projector.tokens(sizes) - tower.skipped),
        dataclasses.replace(SPEC.decoder, hidden=64),
        None,
    )
    checkpoint = SimpleNamespace(name="Tiny Model", license="cc0-1.0", sha256="0" * 64, spec=spec)
    writer = plugins.load("exporters.formats", format)
    made = write(writer, Component("vision", build, {}), module, scheme, folder, checkpoint=checkpoint)
    part = PartFiles(format, scheme, ("vision", "projector"), made.files, made.inputs, made.outputs)
    return module, part, writer.SCHEMES["vision"][scheme]


def assert_computes(module, graph, tolerance):
    pixels = np.random.default_rng(module.view_shape[-1]).normal(size=module.view_shape).astype(np.float32)
    found = graph.run({"pixel_values": pixels})["image_embeds"]
    with torch.inference_mode():
        expected = module(torch.from_numpy(pixels)).numpy()
    assert found.shape == expected.shape
    error = distance(found, expected)
    assert error["cosine"] >= tolerance["cosine"], error
    assert error["max_abs"] <= tolerance.get("max_abs", np.inf), error


EXACT = {"max_abs": 5e-5, "cosine": 0.9999999}
ENGINES = {"onnx": ("onnxruntime",), "tflite": ("litert",), "executorch": ("executorch", "executorch_native")}


SHAPES = [("mlp2x_gelu", 5, -1), ("mlp2x_gelu", 4, None), ("ldpnetv2", 27, -2)]
BOTH = [(scheme, *shape) for scheme in ("fp32", "w8a8") for shape in SHAPES]


@pytest.mark.parametrize(
    ("format", "scheme", "kind", "grid", "layer"),
    [(format, *case) for format in ENGINES for case in (BOTH[1::2] if format == "executorch" else BOTH)],
)
def test_every_format_computes_what_torch_does(format, scheme, kind, grid, layer, tmp_path):
    """ExecuTorch, seconds a part, has each shape and each scheme, and not each of both."""
    module, part, tolerance = written(format, scheme, kind, grid, layer, tmp_path)
    for engine in ENGINES[format]:
        assert_computes(module, open_part(part, engine, OPTIONS), EXACT if scheme == "fp32" else tolerance)


@pytest.mark.parametrize(("kind", "grid", "layer"), [("mlp2x_gelu", 4, None), ("ldpnetv2", 27, -2)])
@pytest.mark.parametrize("scheme", ["fp16", "w8"])
def test_core_ml_computes_what_torch_does(scheme, kind, grid, layer, tmp_path):
    module, part, tolerance = written("coreml", scheme, kind, grid, layer, tmp_path)
    assert_computes(module, mil.evaluate(part, OPTIONS, "fp32"), EXACT)
    assert_computes(module, mil.open(part, OPTIONS), tolerance)


def test_llama_cpp_s_mmproj_is_refused_by_name(tmp_path):
    with pytest.raises(EdgeError, match="a siglip vision encoder is not written as an mmproj yet") as caught:
        written("gguf", "f16", "mlp2x_gelu", 4, -2, tmp_path)
    assert "--recipe onnx-w8a8-gguf-q4_0" in caught.value.hint


def test_clip_has_the_same_protocol():
    config = clip.tiny().config
    assert (config.grid, config.tokens, config.run_layers, config.cls) == (4, 16, 2, False)
