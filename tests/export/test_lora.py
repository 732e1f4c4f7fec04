"""Fine-tunes stored as LoRA: with their base they are the merged model, or are refused by name."""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
from pathlib import Path

import llava_checkpoints as made
import numpy as np
import pytest
import torch
from checkpoint_copies import TOWER, Copy
from exported import golden_of
from fine_tunes import WRAP, Tuned, drawn
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_llava_hf import assert_same_model

from edge.bundle.manifest import Bundle
from edge.errors import CheckpointError, ParityError, UsageError
from exporters.export import ExportRequest, export
from exporters.sources import hub
from exporters.sources.checkpoint import open_checkpoint
from exporters.verify_checkpoint import verify_against

QUERY, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
EYE = f"{TOWER}encoder.layers.0.self_attn.q_proj"
LAST_EYE = f"{TOWER}encoder.layers.2.self_attn.q_proj"  # no feature is taken of it
PROJECTOR, HEAD, TABLE = "model.mm_projector.mlp.mlp.0", "lm_head", "model.embed_tokens"
LINEARS = (QUERY, "model.layers.0.mlp.gate_proj", DOWN, EYE, PROJECTOR, HEAD)


@pytest.fixture(scope="module")
def base(exports):
    return exports.checkpoint(dtype="float32")


@pytest.fixture(scope="module")
def tensors(base):
    return load_file(base / "model.safetensors")


@pytest.fixture
def tune(tensors, tmp_path):
    def tuned(**switches):
        return Tuned(tmp_path / "tuned", tensors, **switches)

    return tuned


def opened(tuned, base, **options):
    return open_checkpoint(str(tuned.folder), base=str(base), **options)


def refused(tuned, base, match, kind=CheckpointError):
    with pytest.raises(kind, match=match) as caught:
        opened(tuned, base)
    return caught.value


def assert_merged(found, tuned):
    assert set(found.weights) == set(tuned.merged)
    for name, expected in tuned.merged.items():
        near = 2e-6 * float(expected.abs().max())  # float32's digits, of sums in which numbers cancel
        torch.testing.assert_close(found.weights[name].double(), expected.double(), rtol=0, atol=near, msg=name)


# Exact


@settings(max_examples=20)
@given(
    targets=st.sets(st.sampled_from(LINEARS), min_size=1),
    rank=st.integers(1, 70),
    alpha=st.sampled_from([0, 1, 16, 0.5, 300]),
    switches=st.fixed_dictionaries({"use_rslora": st.booleans(), "use_dora": st.booleans()}),
    binary=st.booleans(),
)
def test_any_rank_and_any_layers(base, targets, rank, alpha, switches, binary):
    tensors = load_file(base / "model.safetensors")
    with tempfile.TemporaryDirectory() as root:
        tuned = Tuned(Path(root, "tuned"), tensors, r=rank, lora_alpha=alpha, **switches)
        for seed, module in enumerate(sorted(targets)):
            tuned.low_rank(module, seed=seed)
        assert_merged(opened(tuned.save(binary=binary), base), tuned)


def test_patterns_of_ranks_and_alphas(tune, base):
    tuned = tune(rank_pattern={"layers.0.self_attn.q_proj": 2, "down_proj": 9}, alpha_pattern={r".*\.down_proj": 3})
    tuned.low_rank(QUERY, rank=2, scale=8 / 2).low_rank(DOWN, rank=9, scale=3 / 9)
    tuned.low_rank("model.layers.1.self_attn.q_proj", scale=8 / 4)
    assert_merged(opened(tuned.save(), base), tuned)


def test_a_scale_of_a_pattern_is_rank_stabilised(tune, base):
    tuned = tune(use_rslora=True, rank_pattern={"q_proj": 9}).low_rank(QUERY, rank=9, scale=8 / math.sqrt(9))
    assert_merged(opened(tuned.save(), base), tuned)


def test_an_embedding_table(tune, tensors, base):
    tuned = tune()
    a, b = drawn(4, 512), drawn(64, 4, seed=1)
    tuned.halves = {f"{WRAP}{TABLE}.lora_embedding_A": a, f"{WRAP}{TABLE}.lora_embedding_B": b}
    tuned.merged[f"{TABLE}.weight"] = tensors[f"{TABLE}.weight"].double() + 2 * (b.double() @ a.double()).T
    assert_merged(opened(tuned.save(), base), tuned)


@pytest.mark.parametrize("prefix", [WRAP, "base_model.", "model.", ""])
def test_what_was_trained_whole(tune, tensors, base, prefix):
    """As PEFT's modules_to_save and LLaVA's non_lora_trainables.bin have them, a vision encoder's layer too."""
    tuned = tune(modules_to_save=["lm_head", "mm_projector"]).low_rank(QUERY)
    for name in (f"{PROJECTOR}.bias", f"{EYE}.weight"):
        tuned.whole(name, prefix + ("model." if prefix == "base_model." else "") + name, drawn(*tensors[name].shape))
    tuned.whole(f"{HEAD}.weight", f"{WRAP}{HEAD}.weight", drawn(512, 64), file="halves")
    assert_merged(opened(tuned.save(), base), tuned)


def test_a_low_rank_change_of_what_is_stored_whole(tune, tensors, base):
    tuned = tune()
    tuned.base = tensors | {f"{QUERY}.weight": drawn(64, 64, seed=9)}
    tuned.low_rank(QUERY).halves[f"{WRAP}{QUERY}.base_layer.weight"] = tuned.base[f"{QUERY}.weight"]
    assert_merged(opened(tuned.save(), base), tuned)


def test_a_layer_of_the_encoder_that_is_not_computed_may_change(tune, base):
    tuned = tune().low_rank(LAST_EYE).low_rank(EYE)
    assert_merged(opened(tuned.save(), base), tuned)


def config_of(base):
    return json.loads((base / "config.json").read_text())


def language_model(base, folder):
    """What LLaVA's training begins with: no projector, and the vision encoder elsewhere."""
    copy = Copy(base, folder)
    copy.move_tower(folder.parent / "clip-vit-large-patch14-336")
    copy.save({name: tensor for name, tensor in copy.tensors.items() if "mm_projector" not in name})
    return copy.json("config.json", [key for key in config_of(base) if key.startswith("mm_")], model_type="llama")


@pytest.mark.parametrize("file", ["non_lora_trainables.bin", "mm_projector.bin"])
def test_a_projector_on_a_language_model(tune, tensors, base, tmp_path, file):
    """LLaVA's own layout: config.json beside the adapter is the model's; the second is its first stage, without."""
    under = language_model(base, tmp_path / "vicuna").folder
    tuned = tune().low_rank(QUERY)
    for name in (name for name in tensors if "mm_projector" in name):
        tuned.whole(name, WRAP + name if file == "non_lora_trainables.bin" else name, tensors[name])
    tuned.save(config_of(base))
    if file == "mm_projector.bin":
        (tuned.folder / "non_lora_trainables.bin").rename(tuned.folder / file)
        (tuned.folder / "adapter_model.safetensors").unlink()
        (tuned.folder / "adapter_config.json").unlink()
        tuned.merged[f"{QUERY}.weight"] = tensors[f"{QUERY}.weight"]
    found = opened(tuned, under)
    for role, component in found.components.items():
        state = component.load(found.weights).state_dict()
        for name, source in component.keys.items():
            if role != "vision":
                expected = source.load(lambda key: tuned.merged[key].float(), torch.float32)
                torch.testing.assert_close(state[name], expected)


def test_a_vision_encoder_that_was_tuned_whole(tune, tensors, base, tmp_path):
    under = language_model(base, tmp_path / "vicuna").folder
    shutil.rmtree(tmp_path / "clip-vit-large-patch14-336")
    tuned = tune().low_rank(QUERY)
    for name in (name for name in tensors if "mm_projector" in name or name.startswith(TOWER)):
        tuned.whole(name, WRAP + name, tensors[name] + 1)
    found = opened(tuned.save(config_of(base) | {"unfreeze_mm_vision_tower": True}), under)
    assert_merged(found, tuned)


@torch.inference_mode()
@pytest.mark.parametrize("spelling", ["4", "5", "5 with vision_model"])
@pytest.mark.parametrize("called", ["language_model.model.", "model.language_model."])
def test_the_model_of_transformers_that_is_merged(spelling, called, tmp_path):
    """Whichever versions of transformers saved the base and trained the adapter."""
    model = made.save(tmp_path / "saved")
    under = made.respell(tmp_path / "saved", tmp_path / "base", spelling)
    layer = "layers.1.self_attn.v_proj"
    linear = model.model.language_model.get_submodule(layer)
    tuned = Tuned(tmp_path / "tuned", {f"{layer}.weight": linear.weight.detach()})
    tuned.low_rank(layer, called=called + layer).save()
    linear.weight.data = tuned.merged[f"{layer}.weight"].float()
    assert_same_model(opened(tuned, under), model)


def merged_folder(tuned, base, folder):
    shutil.copytree(base, folder)
    save_file(
        {name: tensor.float().contiguous() for name, tensor in tuned.merged.items()}, folder / "model.safetensors"
    )
    return folder


def test_a_bundle_is_that_of_the_merged_model(tune, base, tmp_path):
    tuned = tune(r=8, lora_alpha=32)
    for seed, module in enumerate((QUERY, DOWN, EYE, PROJECTOR)):
        tuned.low_rank(module, seed=seed)
    tuned.save()
    whole = merged_folder(tuned, base, tmp_path / "merged")

    def exported(name, source, **more):
        request = ExportRequest(str(source), tmp_path / name, schemes=("fp32",), threads=1, **more)
        return export(request, lambda *_: None).path

    ours, theirs, plain = (
        golden_of(path).fp32
        for path in (
            exported("ours", tuned.folder, base=str(base)),
            exported("theirs", whole),
            exported("plain", base),
        )
    )
    assert list(ours.tokens) == list(theirs.tokens)
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-4)
    assert np.abs(ours.logits - plain.logits).max() > 0.1
    bundle = Bundle.open(tmp_path / "ours")
    assert verify_against(bundle, str(tuned.folder), None, 1, base=str(base)).ok
    with pytest.raises(ParityError, match="is not the checkpoint that this bundle was made from"):
        verify_against(bundle, str(base), None, 1)


# What is said of it


def test_the_hash_covers_both_folders(tune, base, tmp_path):
    tuned = (
        tune().low_rank(QUERY).whole(f"{PROJECTOR}.bias", f"{WRAP}{PROJECTOR}.bias", drawn(64)).save(config_of(base))
    )
    seen = {opened(tuned, base).sha256, open_checkpoint(str(base)).sha256}
    copy = Copy(base, tmp_path / "copy")
    assert opened(tuned, copy.folder).sha256 in seen
    seen.add(opened(tuned, copy.save(copy.tensors | {"lm_head.weight": drawn(512, 64)}).folder).sha256)
    for name in ("adapter_config.json", "config.json"):
        path = tuned.folder / name
        path.write_text(path.read_text() + "\n")
        seen.add(opened(tuned, base).sha256)
    for name in ("adapter_model.safetensors", "non_lora_trainables.bin"):
        path = tuned.folder / name
        if name.endswith(".bin"):
            torch.save({name: tensor + 1 for name, tensor in tuned.trained.items()}, path)
        else:
            save_file({name: tensor + 1 for name, tensor in tuned.halves.items()}, path)
        seen.add(opened(tuned, base).sha256)
    assert len(seen) == 7


@pytest.mark.parametrize(
    ("card", "expected"),
    [(None, "cc0-1.0"), ("cc0-1.0", "cc0-1.0"), ("mit", "mit (base: cc0-1.0)")],
)
def test_name_and_licence(tune, base, card, expected):
    tuned = tune().low_rank(QUERY).save()
    if card:
        (tuned.folder / "README.md").write_text(f"---\nlicense: {card}\n---\n")
    found = opened(tuned, base)
    assert (found.name, found.license) == ("tuned", expected)


def test_another_name_of_the_base_is_only_told(tune, base, caplog):
    with caplog.at_level(logging.WARNING):
        opened(tune().low_rank(QUERY).save(), base)
    assert f"was trained on 'some/base', and --base is '{base.name}'" in caplog.text


def test_the_hub_has_both(tune, base, monkeypatch):
    tuned = tune().low_rank(QUERY).save()
    places = {"someone/lora": tuned.folder, "some/base": base}
    monkeypatch.setattr(hub, "_download", lambda name, patterns: places[name])
    found = open_checkpoint("someone/lora", base="some/base")
    assert found.name == "lora"
    assert_merged(found, tuned)


SENTENCEPIECE = {"<s>": 1, "</s>": 2}  # as a tokenizer that is saved beside an adapter lists them


@pytest.mark.parametrize(
    ("added", "match"),
    [
        (SENTENCEPIECE, None),
        (SENTENCEPIECE | {"<image>": 512}, None),  # no row: nothing but text
        (SENTENCEPIECE | {"<box>": 511}, "adds '<box>' as 511, which the base's does not have"),
        ({"<s>": 2}, "adds '<s>' as 2, which the base's has as 1"),
    ],
)
def test_a_tokenizer_beside_the_adapter_must_be_the_base_s(tune, base, added, match):
    tuned = tune().low_rank(QUERY).save()
    (tuned.folder / "added_tokens.json").write_text(json.dumps(added))
    refused(tuned, base, match) if match else assert_merged(opened(tuned, base), tuned)


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_beside_the_adapter_is_told(tune, base, tmp_path, file):
    tuned, text = tune().low_rank(QUERY).save(), "{{ messages[0]['content'] }}"
    assert not opened(tuned, base).notes
    (tuned.folder / file).write_text(text if file.endswith("jinja") else json.dumps({"chat_template": text}))
    assert opened(tuned, base).notes == (
        f"the adapter's own chat template ({file}) is not taken: --prompt FILE.jinja takes it",
    )
    copy = Copy(base, tmp_path / "copy")
    (copy.folder / "chat_template.jinja").write_text(text)
    assert not opened(tuned, copy.folder).notes


# Refused

SWITCHES = {
    "another type": ({"peft_type": "IA3"}, "peft_type 'IA3'"),
    "no type": ({"peft_type": None}, "peft_type None"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
    "LoftQ": ({"init_lora_weights": "loftq"}, "init_lora_weights 'loftq'"),
    "transposed": ({"fan_in_fan_out": True}, "fan_in_fan_out True"),
    "a bias of the halves": ({"lora_bias": True}, "lora_bias True"),
    "bias": ({"bias": "some"}, "bias 'some'"),
    "parameters": ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
    "tokens": ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    "layers twice": ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    "unknown": ({"use_something": 1}, "use_something 1"),
    "no switch": ({"use_dora": "yes"}, "use_dora 'yes'"),
    "no rank": ({"r": 0}, "a rank of 0"),
    "no number": ({"lora_alpha": "16"}, "lora_alpha of '16'"),
    "infinite": ({"lora_alpha": float("inf")}, "lora_alpha of inf"),
    "no patterns": ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
    "a broken pattern": ({"rank_pattern": {"(": 4}}, r"a pattern '\('"),
    "another rank": ({"r": 5}, r"is \[64, 4\] times \[4, 64\], adapter_config.json has r 5"),
    "lost": ({"modules_to_save": ["lm_head"]}, "'lm_head' in modules_to_save, and the adapter holds no such tensor"),
    "lost magnitudes": ({"use_dora": True}, "expected lora_A, lora_B, lora_magnitude_vector"),
}


@pytest.mark.parametrize("case", SWITCHES)
def test_switches_that_make_another_model(tune, base, case):
    said, match = SWITCHES[case]
    tuned = tune().low_rank(QUERY).save()
    (tuned.folder / "adapter_config.json").write_text(json.dumps(tuned.switches | said))
    refused(tuned, base, match)


def test_what_changes_nothing_is_passed_over(tune, base):
    neutral = {"task_type": "CAUSAL_LM", "lora_dropout": 0.05, "target_modules": ["q_proj"], "bias": "none"}
    neutral |= {"layers_to_transform": [0], "megatron_core": "megatron.core", "init_lora_weights": "gaussian"}
    tuned = tune(**neutral, loftq_config={}, use_qalora=False, qalora_group_size=16, layer_replication=None)
    assert_merged(opened(tuned.low_rank(QUERY).save(), base), tuned)


HALVES = {
    "another shape": (
        f"{WRAP}{QUERY}.lora_A.weight",
        drawn(4, 96),
        r"layers.0.self_attn.q_proj \[64, 96\], the base's",
    ),
    "NaN": (f"{WRAP}{QUERY}.lora_A.weight", drawn(4, 64) * math.nan, r"not finite: .*q_proj.lora_A"),
    "another name": (f"{WRAP}model.layers.7.mlp.up_proj.lora_A.weight", drawn(4, 64), "expected lora_A, lora_B"),
    "a convolution": (f"{WRAP}{QUERY}.lora_A.weight", drawn(4, 64, 3, 3), "convolutions are not merged"),
    "twice": (f"{WRAP}{QUERY}.lora_A.default.weight", drawn(4, 64), "lora_A of .* twice"),
    "a bias": (f"{WRAP}{QUERY}.lora_B.bias", drawn(64), "lora_B.bias', which is not understood"),
    "a magnitude": (f"{WRAP}{QUERY}.lora_magnitude_vector", drawn(64), "has lora_A, lora_B, lora_magnitude_vector"),
    "a whole one": (f"{WRAP}lm_head.weight", drawn(500, 64), r"lm_head.weight \[500, 64\], the base's is \[512, 64\]"),
    "unused": (f"{WRAP}model.score.weight", drawn(2, 64), "model.score.weight"),
}


@pytest.mark.parametrize("case", HALVES)
def test_tensors_that_are_another_model_s(tune, base, case):
    name, tensor, match = HALVES[case]
    tuned = tune().low_rank(QUERY)
    tuned.halves[name] = tensor
    refused(tuned.save(), base, match)


def test_a_layer_that_the_base_has_not(tune, base):
    tuned = tune().low_rank(QUERY, called="model.layers.7.self_attn.q_proj").save()
    error = refused(tuned, base, "trained on another base: it changes\n  model.layers.7.self_attn.q_proj, which")
    assert "--base some/base" in error.hint


def test_a_weight_by_two_names(tmp_path):
    made.save(tmp_path / "base")
    layer = "layers.1.self_attn.v_proj"
    tuned = Tuned(tmp_path / "tuned", {f"{layer}.weight": torch.zeros(32, 64)})
    for prefix in ("language_model.model.", "model.language_model."):
        tuned.low_rank(layer, called=prefix + layer)
    refused(tuned.save(), tmp_path / "base", f"language_model.{layer}, which is .*{layer} by another name")


@pytest.mark.parametrize(
    ("key", "value"), [("num_attention_heads", 8), ("rope_theta", 5e5), ("rms_norm_eps", 0.5), ("hidden_act", "gelu")]
)
def test_a_decoder_of_the_same_shapes_that_computes_otherwise(tune, base, key, value):
    config = config_of(base) | {key: value}
    copied = tune().low_rank(QUERY).whole(f"{PROJECTOR}.bias", f"{WRAP}{PROJECTOR}.bias", drawn(64)).save(config)
    refused(copied, base, f"config.json has {key} {value!r}, the base's ")


@pytest.mark.parametrize("module", [HEAD, TABLE])
def test_a_table_that_is_the_head_cannot_change_alone(tensors, base, tmp_path, module):
    copy = Copy(base, tmp_path / "copy").config(tie_word_embeddings=True)
    tuned = Tuned(tmp_path / "tuned", tensors)
    name = f"{module}.weight"
    tuned.low_rank(QUERY).whole(name, WRAP + name, drawn(512, 64), file="halves").save()
    refused(tuned, copy.folder, f"changes '{name}', which ")


def test_half_a_folder(tune, base):
    tuned = (
        tune().low_rank(QUERY).whole(f"{PROJECTOR}.bias", f"{WRAP}{PROJECTOR}.bias", drawn(64)).save(config_of(base))
    )
    for name in ("adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"):
        (tuned.folder / name).rename(tuned.folder / "away")
        refused(tuned, base, f"is half a LoRA folder: it lacks {name}")
        (tuned.folder / "away").rename(tuned.folder / name)
    opened(tuned, base)


@pytest.mark.parametrize("name", ["adapter_model.bin", "extra.safetensors", "connector/pytorch_model.bin"])
def test_weights_that_are_not_read(tune, base, name):
    tuned = tune().low_rank(QUERY).save()
    (tuned.folder / name).parent.mkdir(exist_ok=True)
    (tuned.folder / name).touch()
    (tuned.folder / "training_args.bin").touch()
    (tuned.folder / "optimizer.pt").touch()
    refused(tuned, base, f"weights that are not read with a base: {name}\n")


def test_two_files_that_disagree(tune, base, tensors):
    name = f"{PROJECTOR}.bias"
    tuned = tune().low_rank(QUERY).whole(name, WRAP + name, drawn(64)).save()
    torch.save({name: drawn(64)}, tuned.folder / "mm_projector.bin")
    assert_merged(opened(tuned, base), tuned)
    torch.save({name: tensors[name]}, tuned.folder / "mm_projector.bin")
    refused(tuned, base, f"two files disagree about '{name}', mm_projector.bin")


class Evil:
    def __reduce__(self):
        return print, ("code",)


def test_a_pickle_that_runs_code(tune, base):
    tuned = tune().low_rank(QUERY).save()
    torch.save({"x": Evil()}, tuned.folder / "non_lora_trainables.bin")
    refused(tuned, base, "would run code")


def test_a_base_goes_with_a_lora_folder_only(tune, base, tmp_path):
    with pytest.raises(UsageError, match="--base goes with a LoRA folder"):
        open_checkpoint(str(base), base=str(base))
    tuned = tune().low_rank(QUERY).save()
    file = tmp_path / "model.gguf"
    file.touch()
    refused(tuned, file, "is not a folder", UsageError)
    shutil.copy(base / "config.json", tuned.folder)
    torch.save({}, tuned.folder / "non_lora_trainables.bin")
    refused(tuned, tuned.folder, "holds an adapter, which is not read without its base")
    shutil.copy(base / "model.safetensors", tuned.folder)
    refused(tuned, base, "--base goes with a LoRA folder", UsageError)


@pytest.mark.parametrize("described", [True, False])
def test_without_its_base_the_option_is_named(tune, base, described):
    tuned = tune().low_rank(QUERY).save()
    if described:
        shutil.copy(base / "config.json", tuned.folder)
    with pytest.raises(CheckpointError, match="holds an adapter") as caught:
        open_checkpoint(str(tuned.folder))
    assert f"edge export {tuned.folder} --base CKPT" in caught.value.hint
