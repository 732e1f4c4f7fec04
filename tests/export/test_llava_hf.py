"""transformers' LlavaForConditionalGeneration: what it saves is read as it computes, or refused by name."""

from __future__ import annotations

import json
import shutil

import llava_checkpoints as made
import numpy as np
import pytest
import torch
from evaluated import answered
from exported import golden_of, manifest_of
from llava_checkpoints import IMAGE, TEXT, VISION, change, respell
from safetensors.torch import load_file, save_file
from variants import Variants, refused

from edge.errors import UsageError
from edge.inference.session import load
from edge.inputs.image import pixels
from exporters.checkpoints import llava_hf
from exporters.export import ExportRequest, export
from exporters.sources.checkpoint import open_checkpoint

VARIANTS = {
    "LLaVA-1.5": {},
    "with the class token": {"vision_feature_select_strategy": "full"},
    "the last layer": {"vision_feature_layer": -1},
    "the second layer, counted from the front": {"vision_feature_layer": 2},
    "a list of one layer": {"vision_feature_layer": [-3]},
    "no biases, tanh-GELU": {"multimodal_projector_bias": False, "projector_hidden_act": "gelu_pytorch_tanh"},
    "Mistral": {"language": "Mistral", "text": {"sliding_window": 256}},
    "SiLU": {"projector_hidden_act": "silu"},
    "tied": {"text": {"tie_word_embeddings": True}},
    "tied by the whole": {"tie_word_embeddings": True},
    "SigLIP": {"siglip": True, "vision_feature_select_strategy": "full", "vision_feature_layer": -1},
    "SigLIP, a layer before": {"siglip": True, "vision_feature_select_strategy": "full"},
}
PLAIN = "LLaVA-1.5"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("llava")
    return Variants(root, PLAIN, lambda folder, variant: (folder, made.save(folder, **VARIANTS[variant])))


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved()[0], tmp_path / "copy")


def loaded(checkpoint):
    return {role: c.load(checkpoint.weights) for role, c in checkpoint.components.items()}


def assert_same_model(found, model):
    """The embeddings of an image, and the logits of text."""
    from exporters.models.attention import GrowingCache

    parts = loaded(found)
    values = torch.randn(1, 3, VISION["image_size"], VISION["image_size"])
    expected = model.get_image_features(values).pooler_output[0]
    embeddings = parts["projector"](parts["vision"](values))[0]
    torch.testing.assert_close(embeddings, expected, rtol=1e-4, atol=1e-5)
    assert found.spec.prompt.image_tokens == len(expected)
    ids = torch.tensor([[1, 5, 9, 300, 17]])
    decoder = parts["decoder"]
    c = decoder.config
    logits = decoder(decoder.embed_tokens(ids), GrowingCache(c.heads, c.kv_heads, c.rope), everywhere=True)
    torch.testing.assert_close(logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_a_saved_model_is_the_same_model(saved, variant):
    folder, model = saved(variant)
    assert_same_model(open_checkpoint(str(folder)), model)


@pytest.mark.parametrize("spelling", ["4", "5", "5 with vision_model"])
@pytest.mark.parametrize("variant", [PLAIN, "SigLIP", "tied"])
@torch.inference_mode()
def test_the_names_of_every_version(saved, variant, spelling, tmp_path):
    folder, model = saved(variant)
    assert_same_model(open_checkpoint(str(respell(folder, tmp_path / "other", spelling))), model)


def test_the_spec(saved):
    found = open_checkpoint(str(saved()[0]))
    image, prompt = found.spec.image, found.spec.prompt
    assert (image.size, image.fit, image.resample) == (28, "crop", "bicubic")
    assert (prompt.image_tokens, prompt.bos_id, prompt.stop_ids) == (16, 1, (2,))
    assert open_checkpoint(str(saved("SigLIP")[0])).spec.image.fit == "stretch"
    assert open_checkpoint(str(saved()[0]), context=100).spec.decoder.context == 100


def test_defaults_are_those_of_transformers():
    from transformers import LlavaConfig

    plain = LlavaConfig()
    assert {name: getattr(plain, name) for name in llava_hf.DEFAULTS} == llava_hf.DEFAULTS
    assert {name: getattr(plain.vision_config, name) for name in llava_hf.VISION} == llava_hf.VISION


@pytest.mark.parametrize("dropped", [(name,) for name in llava_hf.DEFAULTS if name != "image_token_index"])
def test_what_a_config_leaves_out_is_the_default(copy, dropped):
    plain = open_checkpoint(str(copy))
    found = open_checkpoint(str(change(copy, drop=dropped)))
    assert found.spec == plain.spec
    for role, component in plain.components.items():
        assert found.components[role].keys == component.keys


def test_configs_without_model_types_are_clip_and_llama(copy):
    config = json.loads((copy / "config.json").read_text())
    for section in ("vision_config", "text_config"):
        del config[section]["model_type"]
        change(copy, **{section: config[section]})
    assert open_checkpoint(str(copy)).spec.prompt.image_tokens == 16


CONFIG = {
    "several layers": ({"vision_feature_layer": [-2, -3]}, r"vision_feature_layer is \[-2, -3\]: .*not joined"),
    "no layer": ({"vision_feature_layer": []}, r"vision_feature_layer is \[\]"),
    "a layer that is no number": ({"vision_feature_layer": "-2"}, "vision_feature_layer is '-2'"),
    "a layer that is true": ({"vision_feature_layer": True}, "vision_feature_layer is True"),
    "a layer beyond": ({"vision_feature_layer": -9}, "vision_feature_layer is -9, of 3 layers"),
    "a layer above": ({"vision_feature_layer": 4}, "vision_feature_layer is 4, of 3 layers"),
    "a strategy": ({"vision_feature_select_strategy": "cls"}, "vision_feature_select_strategy is 'cls'"),
    "a null strategy": ({"vision_feature_select_strategy": None}, "vision_feature_select_strategy is None"),
    "a length": ({"image_seq_length": 17}, "image_seq_length is 17, and an image gives 16"),
    "an activation": ({"projector_hidden_act": "mish"}, "projector_hidden_act 'mish'"),
    "a list of activations": ({"projector_hidden_act": ["gelu"]}, "projector_hidden_act"),
    "a bias": ({"multimodal_projector_bias": "yes"}, "multimodal_projector_bias is 'yes'"),
    "a missing bias": ({"multimodal_projector_bias": False}, "does not use.*multi_modal_projector.linear_1.bias"),
    "tied": ({"tie_word_embeddings": "no"}, "tie_word_embeddings 'no'"),
    "another image token": ({"image_token_index": 7}, "image_token_index is 7, .*'<image>' is 480"),
    "a text for an image token": ({"image_token_index": "7"}, "image_token_index is '7'"),
    "grids": ({"image_grid_pinpoints": [[336, 672]]}, "image_grid_pinpoints"),
    "a downsampled grid": ({"spatial_merge_size": 2}, "spatial_merge_size 2"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantised already"),
    "no object": ({"vision_config": [1]}, r"vision_config \[1\]"),
    "another text": ({"text_config": "llama"}, "text_config 'llama'"),
    "another decoder": ({"text_config": {**TEXT, "model_type": "mamba"}}, "'mamba'"),
    "another vision encoder": ({"vision_config": {**VISION, "model_type": "pixtral"}}, "'pixtral'"),
    "an empty text": ({"text_config": {}}, "text_config has no hidden_size: 4096, the default"),
    "an empty vision": ({"vision_config": {}}, "vision_config has no hidden_size: 768, the default"),
    "no vision at all": (
        {"vision_config": None, "text_config": {**TEXT, "max_position_embeddings": 1024}},
        "do not fit the vision",
    ),
    "another width": ({"text_config": {**TEXT, "hidden_size": 128}}, "do not fit"),
}


@pytest.mark.parametrize("case", CONFIG)
def test_configs_that_are_refused(copy, case):
    changes, match = CONFIG[case]
    assert refused(change(copy, **changes), f"(?s){match}").hint


def test_siglip_has_no_class_token_to_leave_out(saved, tmp_path):
    folder = shutil.copytree(saved("SigLIP")[0], tmp_path / "copy")
    refused(change(folder, vision_feature_select_strategy="default"), "siglip has none")


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ({"patch_size": 14}, "patch_size 14, and config.json makes it 7"),
        ({"vision_feature_select_strategy": "full"}, "'full', and config.json makes it 'default'"),
        ({"num_additional_image_tokens": 0}, "num_additional_image_tokens 0, and config.json makes it 1"),
    ],
)
def test_a_processor_that_disagrees(copy, told, match):
    right = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    open_checkpoint(str(change(copy, "processor_config.json", processor_class="LlavaProcessor", **right)))
    refused(change(copy, "processor_config.json", **told), match)


def test_weights_that_do_not_fit_are_listed(copy):
    tensors = load_file(copy / "model.safetensors")
    gone = "multi_modal_projector.linear_2.weight"
    save_file({k: v for k, v in tensors.items() if k != gone}, copy / "model.safetensors")
    refused(copy, f"missing: {gone}")
    save_file(
        {**tensors, "language_model.model.layers.9.mlp.up_proj.weight": torch.ones(1)}, copy / "model.safetensors"
    )
    refused(copy, r"does not use:\n  language_model.model.layers.9")
    save_file({k: v for k, v in tensors.items() if not k.startswith("vision_tower")}, copy / "model.safetensors")
    refused(copy, "holds no vision encoder")


def test_llava_s_own_weights_under_such_a_config_are_told(copy):
    tensors = {k.replace("multi_modal_projector", "mm"): v for k, v in load_file(copy / "model.safetensors").items()}
    save_file(tensors, copy / "model.safetensors")
    assert "mm_vision_tower" in refused(copy, r"no weight is named multi_modal_projector").hint


def test_options_that_do_not_go_with_it(copy, tmp_path):
    refused(copy, "--vision-tower does not go", UsageError, vision_tower=tmp_path)
    refused(copy, "--mmproj goes with", UsageError, mmproj=tmp_path / "mmproj.gguf")


def picture():
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (40, 31, 3), dtype=np.uint8)


FORMATS = {
    "onnx": {"schemes": ("fp32",)},
    "tflite": {"format": "tflite", "schemes": ("fp32",)},
    "executorch": {"format": "executorch", "schemes": ("fp32",)},
    "gguf": {"recipe": "onnx-w8a8-gguf-q4_0", "schemes": ("vision=fp32", "decoder=f16")},
    "coreml": {"recipe": "coreml-fp16"},
}
WRITTEN = [(PLAIN, "onnx"), ("SigLIP", "onnx"), ("with the class token", "onnx")]
WRITTEN += [(PLAIN, format) for format in FORMATS if format != "onnx"]


@pytest.mark.parametrize(("variant", "format"), WRITTEN)
@torch.inference_mode()
def test_a_bundle_answers_as_transformers_does(saved, variant, format, tmp_path):
    """Embeddings of an image, and 32 greedy tokens after an image and a question."""
    folder, model = saved(variant)
    bundle = export(
        ExportRequest(str(folder), tmp_path / "bundle", threads=1, prompt="vicuna", **FORMATS[format]), lambda *_: None
    ).path
    values = torch.from_numpy(pixels(picture(), open_checkpoint(str(folder)).spec.image))
    expected = model.get_image_features(values).pooler_output[0]
    if format == "coreml":
        told = transformers_answer(model, values, len(expected), bundle, "What is it?")
        assert tuple(answered(bundle, picture(), "What is it?", len(told))) == told
        return
    with load(bundle, threads=1) as session:
        embeddings = session.encode_image(picture()).rows
        np.testing.assert_allclose(embeddings, expected.numpy(), rtol=1e-4, atol=1e-4)
        session.ask(picture(), "What is it?", max_tokens=32)
        answer = session.last.token_ids
    assert answer == transformers_answer(model, values, len(expected), bundle, "What is it?")


def transformers_answer(model, values, rows, bundle, question):
    """By `generate`, from the ids of the prompt with as many image tokens as the image gives embeddings."""
    from edge.bundle.manifest import Bundle
    from edge.inputs.prompt import Turn, segments
    from edge.inputs.tokenizer import Tokenizer
    from edge.types import Embeddings, Tokens

    opened = Bundle.open(bundle)
    tokenizer = Tokenizer.open(opened.file(opened.manifest.tokenizer))
    image = Embeddings(np.zeros((rows, TEXT["hidden_size"]), np.float32), "0")
    cut = segments(opened.manifest.spec.prompt, tokenizer, [Turn.about(question, (image,))])
    ids = [i for piece in cut for i in (piece.ids if isinstance(piece, Tokens) else [IMAGE] * rows)]
    prompt = torch.tensor([ids])
    said = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        pixel_values=values,
        max_new_tokens=32,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=0,
    )
    return tuple(i for i in said[0, len(ids) :].tolist() if i != 2)


@pytest.mark.parametrize(
    "request_",
    [{"recipe": "coreml-fp16"}, {"recipe": "gguf-f16"}],
    ids=str,
)
def test_other_formats_prove_themselves(saved, request_, tmp_path):
    done = export(
        ExportRequest(str(saved()[0]), tmp_path / "bundle", threads=1, prompt="vicuna", **request_), lambda *_: None
    )
    assert done.report.ok
    assert manifest_of(done.path)["parts"]
    assert golden_of(done.path) is not None
