"""Planted outliers: the activations have them, and the function is what it was."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from llava_checkpoints import save
from safetensors.torch import load_file, save_file

from edge.errors import UsageError
from exporters import standin
from exporters.models.attention import GrowingCache
from exporters.models.decoders import LanguageModel
from exporters.models.folding import folding
from exporters.pipeline import components
from exporters.sources.checkpoint import open_checkpoint
from exporters.standin import massive_encoder
from exporters.standin.command import plant
from exporters.standin.random_weights import Shape

TINY = standin.SHAPES["tiny"]
SHAPE = Shape(replace(TINY.tower, image_size=56, heads=2), replace(TINY.decoder, layers=3))
BOS = 1


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    standin.write(folder, SHAPE, projector="mlp2x_gelu")
    return folder


@pytest.fixture(scope="module")
def planted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "checkpoint"
    plant(base, folder, outlying=(30, 5))
    return folder


@pytest.fixture(scope="module")
def massive(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("massive") / "checkpoint"
    plant(base, folder, massively=(500, 2))
    return folder


def modules(folder):
    found = open_checkpoint(str(folder))
    return [component.load(found.weights) for component in components(found)]


def given(module):
    """What the module is given here."""
    generator = torch.Generator().manual_seed(7)
    if isinstance(module, LanguageModel):
        ids = torch.randint(3, module.config.vocab, (1, 11), generator=generator)
        return module.embed_tokens(torch.cat([torch.tensor([[BOS]]), ids], dim=1))
    return torch.randn(1, 3, module.tower_config.image_size, module.tower_config.image_size, generator=generator)


@torch.inference_mode()
def compute(module, x=None):
    x = given(module) if x is None else x
    if not isinstance(module, LanguageModel):
        return module(x)
    c = module.config
    return module(x, GrowingCache(c.heads, c.kv_heads, c.rope), everywhere=True)


@contextmanager
def inputs(module, path):
    found = []
    handle = module.get_submodule(path).register_forward_pre_hook(lambda _, x: found.append(x[0].flatten(0, 1)))
    yield found
    handle.remove()


def same(found, expected, digits=1e-4):
    torch.testing.assert_close(found, expected, rtol=digits, atol=digits * float(expected.abs().max()))


def test_outliers_are_in_the_activations_and_not_in_the_function(base, planted):
    for before, after in zip(modules(base), modules(planted), strict=True):
        same(compute(after), compute(before))
        for fold in folding(after).folds:
            with inputs(before, fold.readers[0]) as usual, inputs(after, fold.readers[0]) as found:
                compute(before), compute(after)
            ratio = found[0].abs().amax(0) / usual[0].abs().amax(0)
            outliers = ratio > 10
            assert int(outliers.sum()) == (5 * fold.repeats if fold.scales else 0), fold
            torch.testing.assert_close(ratio[outliers], torch.full_like(ratio[outliers], 30), rtol=1e-3, atol=0)
            torch.testing.assert_close(ratio[~outliers], torch.ones_like(ratio[~outliers]), rtol=1e-3, atol=0)


def test_massive_activations_are_in_what_the_projector_reads(base, massive):
    before, after = modules(base)[0], modules(massive)[0]
    fc2 = f"tower.layers.{len(after.tower.layers) - 1}.mlp.fc2"
    with inputs(after, "projector.0") as read, inputs(after, fc2) as hidden:
        rows = compute(after)
    size = read[0].abs()
    usual = float(size.median())
    at = (size > 200 * usual).nonzero()
    assert len(at[:, 0].unique()) == massive_encoder.POSITIONS and len(at[:, 1].unique()) == 2
    assert float(size[at[:, 0], at[:, 1]].min()) > 250 * float(read[0].square().mean(1).sqrt().median())
    assert int((hidden[0].abs() > 100).any(dim=0).sum()) == 1  # one unit writes them
    # Elsewhere nothing is written: what is left there is small beside the function.
    elsewhere = torch.ones(len(size), dtype=torch.bool)
    elsewhere[at[:, 0].unique()] = False
    cosine = torch.nn.functional.cosine_similarity(rows[0][elsewhere], compute(before)[0][elsewhere], dim=-1)
    assert float(cosine.min()) > 0.9 and float(cosine.mean()) > 0.97


def test_a_massive_first_token_leaves_exactly_the_function_without_its_channels(base, massive):
    before, after = modules(base)[1], modules(massive)[1]
    channels = (after.embed_tokens.weight[BOS].abs() > 1).nonzero().flatten()
    assert len(channels) == 2
    before.embed_tokens.weight[:, channels] = 0
    for layer in before.layers:
        layer.o_proj.weight[channels] = 0
        layer.down_proj.weight[channels] = 0
    assert torch.count_nonzero(before.embed_tokens.weight - after.embed_tokens.weight) == 2
    same(compute(after), compute(before))
    without = given(before)[:, 1:]  # whose attention sees no such token
    same(compute(after, without), compute(before, without))
    with inputs(after, "layers.2.post_attention_layernorm") as stream:
        after.layers[2].post_attention_layernorm.add = lambda x, delta: (
            after.layers[2].post_attention_layernorm(x + delta),
            x + delta,
        )
        compute(after)
    usual = float(stream[0][1:].square().mean().sqrt())
    assert stream[0][0, channels].min() > 200 * usual
    assert float(stream[0][1:].abs().max()) < 10 * usual


def test_both_at_once(base, massive, tmp_path):
    plant(base, tmp_path / "both", outlying=(30, 5), massively=(500, 2))
    for before, after in zip(modules(massive), modules(tmp_path / "both"), strict=True):
        same(compute(after), compute(before), 1e-3)


def test_the_same_seed_gives_the_same_bytes(base, planted, tmp_path):
    plant(base, tmp_path / "same", outlying=(30, 5))
    plant(base, tmp_path / "other", outlying=(30, 5), seed=1)
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (planted, tmp_path / "same")]
    assert files[0] == files[1]
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != files[0]["model.safetensors"]


def test_a_copy_is_whole_and_float32(base, planted):
    first, second = open_checkpoint(str(base)), open_checkpoint(str(planted))
    assert set(first.weights) == set(second.weights)
    assert {second.weights.dtype(name) for name in second.weights} == {torch.float32}
    assert json.loads((planted / "config.json").read_text())["torch_dtype"] == "float32"
    assert {path.name for path in base.iterdir()} == {path.name for path in planted.iterdir()}
    kept = [name for name in first.weights if torch.equal(first.weights[name].float(), second.weights[name])]
    assert any("layers.2" in name and "vision" in name for name in kept)  # behind the layer that is taken
    assert "model.embed_tokens.weight" in kept and "model.norm.weight" not in kept


@pytest.mark.parametrize("siglip", [False, True])
def test_checkpoints_of_another_layout(siglip, tmp_path):
    save(tmp_path / "hf", siglip=siglip, **({"vision_feature_select_strategy": "full"} if siglip else {}))
    plant(tmp_path / "hf", tmp_path / "new", outlying=(100, 2), massively=(100, 1))
    plant(tmp_path / "hf", tmp_path / "massive", massively=(100, 1))
    for before, after in zip(modules(tmp_path / "massive"), modules(tmp_path / "new"), strict=True):
        same(compute(after), compute(before), 1e-3)


def test_shards_stay_shards_of_what_they_hold(base, tmp_path, monkeypatch):
    monkeypatch.setattr("exporters.standin.planting.SHARD_BYTES", 400_000)
    plant(base, tmp_path / "shards", outlying=(30, 5))
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    whole = {name: open_checkpoint(str(tmp_path / "shards")).weights[name] for name in index}
    plant(tmp_path / "shards", tmp_path / "again", outlying=(1 / 30, 5))  # the same channels: taken back
    for name, tensor in open_checkpoint(str(base)).weights.items():
        again = open_checkpoint(str(tmp_path / "again")).weights[name]
        torch.testing.assert_close(again, tensor.float(), rtol=1e-6, atol=0)
        assert whole[name].shape == tensor.shape


def command(monkeypatch, caplog, *words):
    caplog.set_level("INFO")
    monkeypatch.setattr(sys, "argv", ["standin", *map(str, words)])
    caplog.clear()
    return standin.main(), caplog.text


@pytest.mark.parametrize("option", ["--outliers", "--massive"])
@pytest.mark.parametrize(
    "text", ["x", "0", "-3", "nan", "inf", "", ":", "30:", "30:0", "30:x", "30:-1", "30:1.5", "30:4:4", "30:9999"]
)
def test_what_is_no_factor_is_refused(base, option, text, tmp_path, monkeypatch, caplog):
    code, said = command(monkeypatch, caplog, "--from", base, f"{option}={text}", "-o", tmp_path / "out")
    assert code == 2
    assert ("9999" in said and "channels" in said) if text == "30:9999" else f"{option} {text!r}" in said
    assert list(tmp_path.iterdir()) == []


def test_the_command(base, planted, tmp_path, monkeypatch, caplog):
    code, _ = command(monkeypatch, caplog, "--from", base, "--outliers", "30:5", "-o", tmp_path / "copy")
    assert code == 0
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (planted / "model.safetensors").read_bytes()
    code, said = command(monkeypatch, caplog, "--from", base, "--outliers", "30", "-o", tmp_path / "copy")
    assert code == 2 and "not empty" in said
    code, said = command(monkeypatch, caplog, "--from", base, "-o", tmp_path / "new")
    assert code == 2 and "nothing is to be planted" in said
    code, said = command(monkeypatch, caplog, "--from", tmp_path / "none", "--outliers", "30", "-o", tmp_path / "new")
    assert code == 1 and "no such folder" in said
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_outliers_of_random_numbers(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(standin.SHAPES, "tiny", SHAPE)
    made = tmp_path / "deep" / "made"
    code, said = command(monkeypatch, caplog, "--shape", "tiny", "--outliers", "30", "--massive", "100", "-o", made)
    assert code == 0 and "the decoder's begin-of-text token is" in said
    assert [path.name for path in made.parent.iterdir()] == ["made"]
    assert open_checkpoint(str(made)).weights.dtype("model.norm.weight") == torch.float32


def test_a_prompt_without_a_first_token_of_its_own(base, tmp_path, caplog):
    caplog.set_level("INFO")
    source = shutil.copytree(base, tmp_path / "source")
    (source / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))
    plant(source, tmp_path / "out", massively=(100, 1))
    assert "no begin-of-text token" in caplog.text
    assert torch.equal(modules(base)[1].embed_tokens.weight, modules(tmp_path / "out")[1].embed_tokens.weight)


def test_what_cannot_be_planted_is_refused(base, tmp_path):
    embeddings = shutil.copytree(base, tmp_path / "embeddings")
    told = json.loads((embeddings / "config.json").read_text()) | {"mm_vision_select_layer": 0}
    (embeddings / "config.json").write_text(json.dumps(told))
    with pytest.raises(UsageError, match="residual stream of a vision transformer"):
        plant(embeddings, tmp_path / "out", massively=(100, 1))
    tower = tmp_path / "apart" / "tower"
    tower.mkdir(parents=True)
    apart = shutil.copytree(base, tmp_path / "apart" / "decoder")
    tensors = load_file(apart / "model.safetensors")
    seen = "model.vision_tower.vision_tower."
    save_file({k.removeprefix(seen): v for k, v in tensors.items() if seen in k}, tower / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if seen not in k}, apart / "model.safetensors")
    vision = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 96}
    (tower / "config.json").write_text(
        json.dumps({"model_type": "clip_vision_model", "image_size": 56, "patch_size": 14, **vision})
    )
    told = json.loads((apart / "config.json").read_text()) | {"mm_vision_tower": "../tower"}
    (apart / "config.json").write_text(json.dumps(told))
    with pytest.raises(UsageError, match="not all in its folder"):
        plant(apart, tmp_path / "out", outlying=(30, 1))
    assert not (tmp_path / "out").exists()
