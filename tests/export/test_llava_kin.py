"""Bunny, nanoLLaVA, TinyLLaVA-Factory and LLaVA with other decoders: answers are those of their own code."""

from __future__ import annotations

import json
import shutil

import llava_kin as made
import numpy as np
import pytest
import tokenizers
import torch
from evaluated import answered
from PIL import Image
from test_gguf_bpe import trained

from edge.errors import CheckpointError
from edge.inference.session import load
from edge.inputs.image import pixels
from exporters.export import ExportRequest, export
from exporters.sources.checkpoint import open_checkpoint
from exporters.sources.published import SYSTEM

END, QUESTION, COUNT = "<|endoftext|>", "What is in this picture?", 32
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BUNNY = (f"{SYSTEM} USER: ", f"\n{QUESTION} ASSISTANT:")  # around the image
WIDE = {"hidden_size": 128, "num_attention_heads": 2}  # heads of which 16 features are rotated
KIN = {  # what is saved, and the texts around the image
    "Bunny, Phi-2": (("bunny-phi", "Phi", {"hidden_size": 128}), BUNNY),
    "Bunny, Phi-3": (("bunny-phi3", "Phi3", {}), BUNNY),
    "Bunny, Qwen1.5": (("bunny-qwen2", "Qwen2", {}), BUNNY),
    "Bunny, StableLM 2": (("bunny-stablelm", "StableLm", {**WIDE, "use_qkv_bias": True}), BUNNY),
    "Bunny, Llama 3": (("bunny-llama", "Llama", {}), BUNNY),
    "nanoLLaVA": (
        ("llava-qwen2", "Qwen2", {"tie_word_embeddings": True}),
        ("<|im_start|>user\n", f"\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"),
    ),
    "TinyLLaVA, Phi-2": ((None, "Phi", {"hidden_size": 128}), BUNNY),
    "TinyLLaVA, StableLM 2": ((None, "StableLm", {**WIDE, "use_qkv_bias": True}), BUNNY),
    "TinyLLaVA, Gemma": ((None, "Gemma", {"head_dim": 32}), BUNNY),
    "LLaVA, Mistral": (("llava_mistral", "Mistral", {"sliding_window": 256, "conv_version": "v1"}), BUNNY),
}


def tokenizer():
    return trained("gpt-2", 512)


def saved(name, root, **more):
    (model_type, kind, said), _ = KIN[name]
    found = made.save(root / "checkpoint", model_type, kind, tokenizer().to_str(), END, **said | more)
    if model_type is None:
        made.as_factory(found)
    if name == "Bunny, StableLM 2":  # whose config has the names of its first code, and its defaults
        path = found.folder / "config.json"
        told = json.loads(path.read_text())
        told["rope_pct"], told["norm_eps"] = (
            told.pop("rope_parameters")["partial_rotary_factor"],
            told.pop("layer_norm_eps"),
        )
        del told["use_qkv_bias"]
        path.write_text(json.dumps(told))
    if name in ("nanoLLaVA", "Bunny, Phi-3"):  # the former's own, and what the latter's language model came with
        path = found.folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": CHATML}))
    return found


def picture():
    return np.random.default_rng(4).integers(0, 256, (40, 61, 3), dtype=np.uint8)


FORMATS = {
    "onnx": {"schemes": ("fp32",)},
    "tflite": {"format": "tflite", "schemes": ("fp32",)},
    "executorch": {"format": "executorch", "schemes": ("fp32",)},
    "gguf": {"recipe": "onnx-w8a8-gguf-q4_0", "schemes": ("vision=fp32", "decoder=f16")},
    "coreml": {"recipe": "coreml-fp16"},
}
LAYOUTS = ("Bunny, Llama 3", "nanoLLaVA", "TinyLLaVA, StableLM 2", "LLaVA, Mistral")
WRITTEN = [*((name, "onnx") for name in KIN), *((n, f) for n in LAYOUTS for f in FORMATS if f != "onnx")]


@pytest.mark.parametrize(("name", "format"), WRITTEN)
def test_a_bundle_answers_as_the_models_own_code(name, format, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kin, (before, after) = saved(name, tmp_path), KIN[name][1]
    request = ExportRequest(str(kin.folder), tmp_path / "out", threads=1, **FORMATS[format])
    done = export(request, lambda *_: None)
    assert done.report.ok
    cut, ids = tokenizer(), tokenizers.Tokenizer.from_str(tokenizer().to_str())
    ends = {cut.token_to_id(END), cut.token_to_id("<|im_end|>")}
    factory = KIN[name][0][0] is None  # its code takes the first patch for a class token, and pads where asked only
    rows = kin.embeddings(kin.pixels(Image.fromarray(picture()), pad=not factory), first=int(factory))
    expected = kin.answer(ids.encode(before).ids, rows, ids.encode(after).ids, ends, COUNT)
    if format == "coreml":
        assert answered(done.path, picture(), QUESTION, len(expected)) == expected
        return
    with load(done.path, threads=1) as session:
        session.ask(picture(), QUESTION, max_tokens=COUNT)
        assert list(session.last.token_ids) == expected[: len(session.last.token_ids)]
        assert len(session.last.token_ids) >= len(expected) - 1  # the end may be left out


@torch.inference_mode()
@pytest.mark.parametrize(("strategy", "first"), [("patch", 1), ("cls_patch", 0)])
def test_what_the_factory_takes_of_an_encoder_without_class_token(strategy, first, tmp_path):
    kin = made.as_factory(saved("Bunny, Phi-2", tmp_path), vision_feature_select_strategy=strategy)
    found = open_checkpoint(str(kin.folder))
    values = torch.randn(1, 3, 28, 28)
    see, project = (found.components[role].load(found.weights) for role in ("vision", "projector"))
    torch.testing.assert_close(project(see(values))[0], kin.embeddings(values, first), rtol=1e-4, atol=1e-5)
    assert found.spec.prompt.image_tokens == 16 - first


FACTORY = {
    "a connector": ({"connector_type": "mof_mlp"}, "connector_type 'mof_mlp'"),
    "two encoders": ({"vision_model_name_or_path2": "dinov2:facebook/dinov2-large"}, "two vision encoders"),
    "tiles": ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres'"),
    "a strategy": ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy is 'full'"),
    "a layer": ({"vision_feature_layer": [-2, -3]}, r"vision_feature_layer is \[-2, -3\]"),
    "beyond": ({"vision_feature_layer": -7}, "vision_feature_layer is -7"),
    "another width": ({"vision_hidden_size": 33}, "vision_hidden_size is 33"),
    "unknown": ({"video_frames": 8}, "video_frames 8"),
    "a decoder": ({"text_config": {"model_type": "openelm"}}, "openelm"),
    "no encoder": ({"vision_config": None}, "vision_config None"),
    "an encoder": ({"vision_config": {"model_type": "dinov2"}}, "dinov2"),
}


@pytest.fixture(scope="module")
def factory(tmp_path_factory):
    return made.as_factory(saved("Bunny, Phi-2", tmp_path_factory.mktemp("factory"))).folder


@pytest.mark.parametrize("case", FACTORY)
def test_what_the_factory_makes_otherwise_is_refused_by_name(factory, case, tmp_path):
    said, match = FACTORY[case]
    copy = shutil.copytree(factory, tmp_path / "copy")
    told = json.loads((copy / "config.json").read_text()) | said
    (copy / "config.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(str(copy))


SHAPES = [(1, 1), (1, 90), (90, 1), (28, 28), (29, 28), (300, 200), (17, 333)]


@pytest.mark.parametrize(("ratio", "pad"), [("pad", True), (None, False), ("square", False)])
def test_images_are_fitted_as_the_processor_does(ratio, pad, tmp_path):
    kin = saved("Bunny, Phi-2", tmp_path, image_aspect_ratio=ratio)
    spec = open_checkpoint(str(kin.folder)).spec.image
    assert spec.fit == ("pad" if pad else "stretch")
    for shape in SHAPES:
        image = np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), dtype=np.uint8)
        expected = kin.pixels(Image.fromarray(image), pad)[0]
        np.testing.assert_allclose(pixels(image, spec)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"use_s2": True}, "use_s2 True, which is not supported: features of several image sizes"),
        ({"mm_projector_type": "spp"}, "spp"),
        ({"mm_hidden_size": 96}, "mm_hidden_size is 96"),
        ({"model_type": "bunny-minicpm"}, "bunny-minicpm"),
    ],
)
def test_what_is_another_model_is_refused_by_name(said, match, tmp_path):
    path = saved("Bunny, Phi-2", tmp_path).folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(str(path.parent))


def test_a_template_of_the_language_model_is_told_and_left_out(tmp_path):
    found = open_checkpoint(str(saved("Bunny, Phi-3", tmp_path).folder))
    assert not found.templates
    assert any("Bunny's own programs" in note for note in found.notes)


def test_a_tuned_tower_that_is_missing_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    kin = saved("Bunny, Phi-2", tmp_path, unfreeze_vision_tower=True)
    path = kin.folder / "model.safetensors"
    save_file({name: t for name, t in load_file(path).items() if "vision_tower" not in name}, path)
    with pytest.raises(CheckpointError, match="unfreeze_vision_tower is true"):
        open_checkpoint(str(kin.folder))
