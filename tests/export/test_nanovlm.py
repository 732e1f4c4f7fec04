"""nanoVLM's layout: answers are those of its definition, written once more in plain torch; or it is refused."""

from __future__ import annotations

import json
import shutil

import nanovlm as made
import numpy as np
import pytest
import tokenizers
import torch
from evaluated import answered
from nanovlm import CONFIG, EXTRA
from test_gguf_bpe import trained

from edge.errors import CheckpointError
from edge.inference.session import load
from edge.inputs.image import pixels
from edge.spec.pieces import Ids, Slot
from exporters.export import ExportRequest, export
from exporters.sources import prompts
from exporters.sources.checkpoint import open_checkpoint

QUESTION, COUNT = "What is in this picture?", 32
VERSIONS = {  # what stands before an image of one view
    "overview": ({}, "<|global_image|>"),
    "tiles only": ({"vlm_extra_tokens": {"image_token": "<|image|>", "r1c1": "<row_1_col_1>"}}, "<row_1_col_1>"),
    "one view": ({"vlm_extra_tokens": {"image_token": "<|image|>"}}, ""),
    "untied": ({"lm_tie_weights": False}, "<|global_image|>"),
}


def tokenizer():
    return trained("smollm", CONFIG["lm_base_vocab_size"] + 9 - 1, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("nanovlm")
    return {name: made.save(root / str(n), tokenizer(), **VERSIONS[name][0]) for n, name in enumerate(VERSIONS)}


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved["overview"].folder, tmp_path / "copy")


def change(folder, **said):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    return folder


def picture():
    return np.random.default_rng(5).integers(0, 256, (40, 61, 3), dtype=np.uint8)


@pytest.mark.parametrize("version", VERSIONS)
@torch.inference_mode()
def test_an_image_s_embeddings(saved, version):
    nano = saved[version]
    found = open_checkpoint(str(nano.folder))
    see, project = (found.components[role].load(found.weights) for role in ("vision", "projector"))
    values = torch.randn(1, 3, 36, 36)
    torch.testing.assert_close(project(see(values))[0], nano.embeddings(values), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (90, 1), (36, 36), (300, 200), (17, 333)])
def test_pixels(saved, shape):
    image = np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = pixels(image, open_checkpoint(str(saved["overview"].folder)).spec.image)
    assert np.abs(found - saved["overview"].pixels(image).numpy()).max() < 1e-6


FORMATS = {
    "onnx": {"schemes": ("fp32",)},
    "executorch": {"format": "executorch", "schemes": ("fp32",)},
    "coreml": {"recipe": "coreml-fp16"},
    "tflite": {"format": "tflite", "schemes": ("fp32",)},
    "gguf": {"recipe": "onnx-w8a8-gguf-q4_0", "schemes": ("vision=fp32", "decoder=f16")},
}


@pytest.mark.parametrize(
    ("version", "format"),
    [
        ("overview", "onnx"),
        ("untied", "tflite"),
        ("tiles only", "gguf"),
        ("one view", "executorch"),
        ("overview", "coreml"),
    ],
)
def test_a_bundle_answers_as_its_definition_does(saved, version, format, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    nano, (_, before) = saved[version], VERSIONS[version]
    request = ExportRequest(str(nano.folder), tmp_path / "out", threads=1, **FORMATS[format])
    done = export(request, lambda *_: None)
    assert done.report.ok
    texts = tokenizer()
    texts.add_special_tokens(list(nano.config["vlm_extra_tokens"].values()))
    start, end = (texts.encode(text).ids for text in (f"<|im_start|>user\n{before}", f"{QUESTION}<|im_end|>\n"))
    end += texts.encode("<|im_start|>assistant\n").ids
    expected = nano.answer(start, nano.pixels(picture()), end, COUNT)
    stop = texts.token_to_id("<|im_end|>")
    expected = expected[: expected.index(stop)] if stop in expected else expected
    assert len(expected) > 8
    if format == "coreml":
        assert answered(done.path, picture(), QUESTION, COUNT)[: len(expected)] == expected
        return
    with load(done.path, threads=1) as session:
        session.ask(picture(), QUESTION, max_tokens=COUNT)
        assert list(session.last.token_ids) == expected


def test_the_prompt(saved):
    found, _ = prompts.settle(open_checkpoint(str(saved["overview"].folder)), None)
    texts = tokenizers.Tokenizer.from_str(found.tokenizer_json())
    overview = texts.token_to_id(EXTRA["global_image_token"])
    assert overview == CONFIG["lm_base_vocab_size"] + 1
    assert found.spec.prompt.image == (Ids((overview,)), Slot("image"))
    assert found.spec.prompt.end_ids == (texts.token_to_id("<|im_end|>"),)
    assert any("as with max_img_size 36" in note for note in found.notes)


REFUSED = {
    "a class token": ({"vit_cls_flag": True}, "vit_cls_flag is True"),
    "scaled rotation": ({"lm_attn_scaling": 0.5}, "lm_attn_scaling is 0.5"),
    "tokens": ({"lm_use_tokens": True}, "lm_use_tokens is True"),
    "a factor": ({"mp_pixel_shuffle_factor": 5}, "scale_factor is 5, and an image has 6 x 6 patches"),
    "rows": ({"mp_image_token_length": 64}, "mp_image_token_length is 64, and an image gives 9"),
    "unknown": ({"mp_resampler": True}, "mp_resampler True, which nanoVLM"),
    "tokens that are none": ({"vlm_extra_tokens": {"image_token": 7}}, "vlm_extra_tokens is"),
    "another tokenizer": ({"lm_base_vocab_size": 300}, "lm_base_vocab_size is 300, and '<|image|>' is the token 311"),
    "a template": ({"lm_chat_template": 7}, "lm_chat_template is 7"),
    "a size": ({"lm_n_heads": 5}, "cannot be built"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_another_model_is_refused_by_name(copy, case):
    said, match = REFUSED[case]
    with pytest.raises(CheckpointError, match=match.replace("|", r"\|")) as caught:
        open_checkpoint(str(change(copy, **said)))
    assert caught.value.hint


def test_a_size_that_is_missing_is_named(copy):
    told = json.loads((copy / "config.json").read_text())
    del told["lm_rms_eps"]
    (copy / "config.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match="no lm_rms_eps"):
        open_checkpoint(str(copy))


def test_the_tokenizer_is_asked_for_by_its_name(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer") as caught:
        open_checkpoint(str(copy))
    assert "hf download HuggingFaceTB/SmolLM2-360M-Instruct" in caught.value.hint


def test_without_a_template_no_prompt_is_assumed(copy):
    """As the first version has it."""
    found = open_checkpoint(str(change(copy, lm_chat_template="")))
    with pytest.raises(CheckpointError, match="no chat template"):
        prompts.settle(found, None)
