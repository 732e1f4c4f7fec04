"""Checkpoints of LLaVA's dialect: what is read from a folder, in every layout of its weights, and from where."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoint_copies import TOWER, Copy, state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from edge.errors import CheckpointError, EdgeError
from edge.inputs.prompt import Turn, parts
from exporters import standin
from exporters.sources.checkpoint import open_checkpoint


@pytest.fixture
def copy(exports, tmp_path):
    return Copy(exports.checkpoint(dtype="float32"), tmp_path / "MobileVLM_tiny")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("format", "shards"), [("safetensors", 1), ("safetensors", 3), ("bin", 1), ("bin", 3)])
def test_every_layout_gives_the_same_components(exports, tmp_path, format, shards, dtype):
    original, folder = exports.checkpoint(dtype="float32"), tmp_path / "other"
    standin.write(folder, standin.SHAPES["tiny"], format=format, shards=shards, dtype=dtype)
    stored = {name: tensor.to(dtype).float() for name, tensor in load_file(original / "model.safetensors").items()}
    found = open_checkpoint(str(folder))
    decoder = state(found, "decoder")
    layer = "model.layers.1.self_attn."
    joined = torch.cat([stored[f"{layer}{p}_proj.weight"] for p in "qkv"])
    assert torch.equal(decoder["layers.1.qkv_proj.weight"], joined)
    assert torch.equal(decoder["lm_head.weight"], stored["lm_head.weight"])
    assert torch.equal(state(found, "projector")["peg.peg.0.weight"], stored["model.mm_projector.peg.peg.0.weight"])
    vision = state(found, "vision")
    assert torch.equal(vision["layers.1.mlp.fc1.bias"], stored[TOWER + "encoder.layers.1.mlp.fc1.bias"])
    assert {tensor.dtype for part in (decoder, vision) for tensor in part.values()} == {torch.float32}


def test_the_spec(copy):
    found = copy.open()
    assert found.name == "MobileVLM_tiny"
    assert found.license == "cc0-1.0"
    assert found.weights_bytes == sum(t.numel() * 4 for t in copy.tensors.values())
    image, prompt, decoder = found.spec.image, found.spec.prompt, found.spec.decoder
    assert (image.size, image.fit, image.background, image.resample) == (336, "pad", (122, 116, 104), "bicubic")
    assert image.mean == (0.48145466, 0.4578275, 0.40821073)
    assert (prompt.image_tokens, prompt.bos_id, prompt.end_ids, prompt.stop_ids) == (144, 1, (2,), (2,))
    assert prompt.stop_strings == ("</s>",)
    said = "".join(map(str, parts(prompt, [Turn.about("<image>\nHi")])))
    assert said == (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
        "USER: <image>\nHi ASSISTANT:"
    )
    assert (decoder.layers, decoder.heads, decoder.kv_heads, decoder.head_dim) == (2, 4, 2, 16)
    assert (decoder.hidden, decoder.vocab, decoder.context, decoder.rope_theta) == (64, 512, 1024, 10000.0)
    assert '"BPE"' in found.tokenizer_json()


def test_the_source_is_left_as_it_was(copy):
    def seen():
        return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(copy.folder.iterdir())}

    before = seen()
    found = copy.open()
    for role in found.components:
        found.components[role].load(found.weights)
    assert found.sha256
    found.tokenizer_json()
    assert seen() == before


def test_sha256_follows_the_content_only(exports, copy):
    first = open_checkpoint(str(exports.checkpoint(dtype="float32"))).sha256
    assert copy.open().sha256 == first
    copy.config(image_aspect_ratio="square")
    assert copy.open().sha256 != first


def test_license_and_name(copy):
    assert copy.config(license="mit").open().license == "cc0-1.0"
    (copy.folder / "README.md").write_text("No front matter.\nlicense: not this\n")
    assert copy.open().license == "mit"
    copy.config(drop=["license"])
    (copy.folder / "LICENSE").write_text("\n  Apache License\nVersion 2.0")
    assert copy.open().license == "Apache License"
    (copy.folder / "LICENSE").unlink()
    assert copy.open().license == "unknown"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00", b"[" * 100_000])
def test_damaged_config_file(copy, content):
    (copy.folder / "config.json").write_bytes(content)
    assert "download" in copy.refused(r"config\.json").hint


def test_no_folder(tmp_path):
    for source in (str(tmp_path / "nowhere"), "nowhere", "a/b/c", "../x", ""):
        with pytest.raises(CheckpointError, match=r"no such folder|has no config\.json"):
            open_checkpoint(source)
    (tmp_path / "file").write_text("hello")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(CheckpointError, match=r"has no config\.json"):
            open_checkpoint(str(path))


def test_no_tokenizer(copy):
    (copy.folder / "tokenizer.model").unlink()
    copy.refused("tokenizer")


JUNK = [None, True, -1, 0, 3, 2.5, "junk", [], ["a"], {}, {"type": "linear"}]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_config_is_read_or_refused(copy, exports, data):
    config = json.loads((exports.checkpoint(dtype="float32") / "config.json").read_text())
    names = [*config, "rope_scaling", "rope_parameters", "vision_config", "head_dim", "attention_bias", "license"]
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2)):
        config[name] = data.draw(st.sampled_from(JUNK))
    (copy.folder / "config.json").write_text(json.dumps(config))
    try:
        found = copy.open()
    except EdgeError:
        return
    assert set(found.components) == {"vision", "projector", "decoder"}
