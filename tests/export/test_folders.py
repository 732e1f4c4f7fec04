"""Files of a checkpoint's folder that are no whole model: each is recognised, named, and refused or reported."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from checkpoint_copies import CLIP, TOWER, Copy, state
from safetensors.torch import save_file

from edge.errors import CheckpointError
from exporters import standin
from exporters.sources import hub
from exporters.sources.checkpoint import open_checkpoint
from exporters.sources.preprocessor import FILES

ADAPTERS = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "adapter_model.pt",
    "adapter_model-00001-of-00002.safetensors",
    "adapter_0.pt",
    "non_lora_trainables.bin",
]


@pytest.fixture
def copy(exports, tmp_path):
    return Copy(exports.checkpoint(dtype="float32"), tmp_path / "MobileVLM_tiny")


# Adapters, projectors, deltas


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_named_beside_whole_weights_and_alone(copy, name):
    (copy.folder / name).write_text("{}")
    beside = copy.refused(f"holds an adapter, which is not read without its base: {name}")
    assert "--base" in beside.hint
    (copy.folder / "model.safetensors").unlink()
    assert copy.refused("holds an adapter").message == beside.message


def test_an_adapter_beside_a_tower_is_named(copy, tmp_path):
    copy.move_tower(tmp_path / "mine")
    (tmp_path / "mine" / "adapter_config.json").write_text("{}")
    error = copy.refused("mine' holds an adapter", vision_tower=tmp_path / "mine")
    assert "adapter_config.json" in error.message


def test_an_adapter_on_the_hub_is_named(tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(hub, "_download", lambda name, patterns: tmp_path)
    with pytest.raises(CheckpointError, match=r"holds an adapter.*adapter_config\.json"):
        hub.fetch("someone/lora")


@pytest.mark.parametrize("name", ["adapters.md", "my_adapter_config.json", "adapter.txt", "training_args.bin"])
def test_what_only_sounds_like_an_adapter_is_none(copy, name):
    (copy.folder / name).write_text("{}")
    assert copy.open().name == "MobileVLM_tiny"


def test_a_projector_beside_whole_weights_is_reported(copy, caplog):
    """The published LLaVA-1.5 has one; its code loads the file only onto a base without a projector."""
    (copy.folder / "mm_projector.bin").write_bytes(b"not looked into")
    plain = copy.tensors["model.mm_projector.mlp.mlp.0.weight"]
    with caplog.at_level(logging.WARNING):
        found = copy.open()
    assert torch.equal(state(found, "projector")["mlp.mlp.0.weight"], plain)
    assert "mm_projector.bin is not read: the weights beside it hold a projector" in caplog.text


def test_a_projector_apart_from_the_weights_is_named(copy):
    (copy.folder / "mm_projector.bin").write_bytes(b"")
    copy.save({k: v for k, v in copy.tensors.items() if "mm_projector" not in k})
    assert "model_base" in copy.refused(r"keeps its projector apart, in mm_projector\.bin").hint
    (copy.folder / "model.safetensors").unlink()
    copy.refused(r"no weights but the projector's, mm_projector\.bin")


def norms(tensors, of=lambda name: True):
    return [k for k in tensors if k.endswith("norm.weight") and not k.startswith(TOWER) and of(k)]


def test_deltas_are_named(copy):
    tensors = copy.tensors
    deltas = {k: torch.randn_like(tensors[k]) * 0.02 for k in norms(tensors)}
    assert len(deltas) == 5
    assert "apply_delta" in copy.save(tensors | deltas).refused("weights are deltas to a base model: all 5 norms").hint


@pytest.mark.parametrize("kept", ["model.norm.weight", "model.layers.1.post_attention_layernorm.weight"])
def test_some_small_norms_are_no_deltas(copy, kept):
    tensors = copy.tensors
    small = {k: tensors[k] * 0.01 for k in norms(tensors, lambda name: name != kept)}
    assert copy.save(tensors | small).open().spec.decoder.layers == 2


# No weights, and what lies there instead


@pytest.mark.parametrize(
    ("names", "match", "hint"),
    [
        ([], r"has no weights\nhint: ", "pytorch_model.bin.index.json"),
        (["notes.txt", "training_args.json"], r"has no weights\nhint: ", "pytorch_model.bin"),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            r"has shards \(model-00001-of-00002\.safetensors\) without their index model\.safetensors\.index\.json",
            "download",
        ),
        (["pytorch_model-00001-of-00003.bin"], r"without their index pytorch_model\.bin\.index\.json", None),
        (["consolidated.00.pth"], r"there are consolidated\.00\.pth", None),
        (["tf_model.h5", "flax_model.msgpack"], r"there are flax_model\.msgpack, tf_model\.h5", None),
        (["llava.safetensors"], r"there are llava\.safetensors", "model.safetensors"),
        (["model-Q4_0.gguf"], r"there are model-Q4_0\.gguf", "edge export"),
    ],
)
def test_what_lies_there_instead_of_weights_is_named(copy, names, match, hint):
    (copy.folder / "model.safetensors").unlink()
    for name in names:
        (copy.folder / name).touch()
    error = copy.refused(match)
    assert hint is None or hint in error.hint


# Neither LLaVA's own layout nor transformers'


@pytest.mark.parametrize(
    ("sections", "match"),
    [
        (
            {"text_config": {}, "vision_config": {}},
            "has vision_tower_type 'clip', which LLaVA in transformers does not",
        ),
        ({}, "describes a 'llava' in a layout that no dialect recognises"),
    ],
)
def test_a_layout_that_is_neither_is_told(copy, sections, match):
    error = copy.config(drop=["mm_vision_tower"], model_type="llava", **sections).refused(match)
    assert "mm_vision_tower" in error.hint


# Where the tower's config lies


def described(folder, **fields):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"} | CLIP | fields))


def tower_of(checkpoint):
    return checkpoint.components["vision"].build().config


@pytest.mark.parametrize("name", ["my-clip", "some/where/my-clip", "C:\\train\\my-clip\\", "/data/my-clip/"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_config_where_the_name_leads_goes_with_weights_of_the_checkpoint(copy, name, inside):
    copy.config(mm_vision_tower=name)
    described((copy.folder if inside else copy.folder.parent) / "my-clip", num_attention_heads=4, hidden_act="gelu")
    found = copy.open()
    assert (tower_of(found).heads, tower_of(found).activation) == (4, "gelu")
    assert TOWER + "pre_layrnorm.bias" in found.weights
    before = found.sha256
    described((copy.folder if inside else copy.folder.parent) / "my-clip", num_attention_heads=2, hidden_act="gelu")
    assert copy.open().sha256 != before


def test_a_given_folder_may_hold_the_config_alone(copy, tmp_path):
    copy.config(mm_vision_tower="laion/CLIP-own", vision_config=CLIP | {"num_attention_heads": 2})
    described(tmp_path / "given", num_attention_heads=8)
    assert tower_of(copy.open(vision_tower=tmp_path / "given")).heads == 8
    (tmp_path / "given" / "model-00001-of-00002.safetensors").touch()  # meant to be used, and not to be passed over
    copy.refused("given' has shards", vision_tower=tmp_path / "given")
    (tmp_path / "empty").mkdir()
    copy.refused("empty' has no weights", vision_tower=tmp_path / "empty")


def test_configs_that_disagree_are_named(copy, tmp_path):
    described(tmp_path / "clip-vit-large-patch14-336", num_attention_heads=4)
    copy.config(vision_config=CLIP | {"num_attention_heads": 4})
    assert tower_of(copy.open()).heads == 4
    error = copy.config(vision_config=CLIP | {"num_attention_heads": 2}).refused("disagree")
    assert "heads=4" in error.message
    assert "heads=2" in error.message
    copy.config(drop=["vision_config"])
    whole = {"model_type": "clip", "vision_config": CLIP, "vision_config_dict": CLIP | {"num_attention_heads": 2}}
    (tmp_path / "clip-vit-large-patch14-336" / "config.json").write_text(json.dumps(whole))
    copy.refused("vision_config_dict of .* heads=2")
    whole["vision_config_dict"] = CLIP
    (tmp_path / "clip-vit-large-patch14-336" / "config.json").write_text(json.dumps(whole))
    assert tower_of(copy.open()).heads == 1


def test_the_hub_is_asked_for_the_config_alone_and_says_so(copy, tmp_path, monkeypatch, caplog):
    asked = []

    def download(name, patterns):
        asked.append((name, patterns))
        described(tmp_path / "cache", num_attention_heads=2)
        return tmp_path / "cache"

    monkeypatch.setattr(hub, "_download", download)
    assert tower_of(copy.open()).heads == 1  # a published tower: nobody is asked
    assert asked == []
    with caplog.at_level(logging.WARNING):
        found = copy.config(mm_vision_tower="laion/CLIP-ViT-own").open()
    assert tower_of(found).heads == 2
    assert asked == [("laion/CLIP-ViT-own", list(hub.CONFIGS))]
    assert "asking the hub for its config" in caplog.text


def test_where_a_config_was_looked_for_is_listed(copy, tmp_path, monkeypatch):
    def fail(name, patterns):
        raise CheckpointError("the hub cannot be asked")

    monkeypatch.setattr(hub, "_download", fail)
    error = copy.config(mm_vision_tower="laion/CLIP-own").refused("heads and the activation")
    assert str(copy.folder / "CLIP-own") in error.message
    assert str(tmp_path / "CLIP-own") in error.message
    assert "the hub cannot be asked" in error.message
    for name in ("clip/.", "clip/..", "/", "clip//", "clip\0", "clip" + 300 * "p", "clip/" * 2000):
        copy.config(mm_vision_tower=name).refused("heads and the activation")


@pytest.mark.parametrize("name", ["clip\0", "clip" + 300 * "p", "clip/" * 2000])
def test_a_name_that_no_file_can_have_is_no_place(copy, tmp_path, name):
    copy.move_tower(tmp_path / "elsewhere")
    copy.config(mm_vision_tower=name).refused("no weights of the vision tower")


def test_the_preprocessor_beside_the_towers_config_counts(copy, tmp_path):
    described(tmp_path / "clip-vit-large-patch14-336")
    (tmp_path / "clip-vit-large-patch14-336" / FILES[0]).write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    assert copy.open().spec.image.mean == (0.5, 0.5, 0.5)
    copy.json(FILES[0], image_mean=[0.25, 0.5, 0.5]).refused("disagree")


def test_a_tuned_tower_that_is_not_there_is_not_replaced(copy, tmp_path):
    copy.move_tower(tmp_path / "clip-vit-large-patch14-336")
    assert copy.config(unfreeze_mm_vision_tower=False).open()
    error = copy.config(unfreeze_mm_vision_tower=True).refused("unfreeze_mm_vision_tower is true")
    assert "--vision-tower" in error.hint
    assert copy.open(vision_tower=tmp_path / "clip-vit-large-patch14-336")


@pytest.mark.parametrize("gone", ["num_attention_heads", "hidden_act", "layer_norm_eps"])
def test_what_a_nested_vision_config_leaves_out_is_as_in_transformers(tmp_path, gone):
    from dataclasses import replace

    from transformers import CLIPVisionConfig

    tiny = standin.SHAPES["tiny"]
    shape = replace(tiny, tower=replace(tiny.tower, hidden=96, heads=6, image_size=56))
    standin.write(tmp_path / "ck", shape, projector="linear")
    told = CLIP | {"hidden_size": 96, "image_size": 56, "num_attention_heads": 6, "layer_norm_eps": 1e-6}
    config = json.loads((tmp_path / "ck" / "config.json").read_text())
    config["vision_config"] = {k: v for k, v in told.items() if k != gone}
    (tmp_path / "ck" / "config.json").write_text(json.dumps(config))
    ours, theirs = tower_of(open_checkpoint(str(tmp_path / "ck"))), CLIPVisionConfig(**config["vision_config"])
    assert (ours.heads, ours.activation, ours.eps) == (
        theirs.num_attention_heads,
        theirs.hidden_act,
        theirs.layer_norm_eps,
    )


def test_heads_of_a_published_tower_are_known_where_the_default_cannot_be(copy):
    copy.config(vision_config={k: v for k, v in CLIP.items() if k != "num_attention_heads"})
    assert tower_of(copy.open()).heads == 1  # 64 wide; 12 do not divide 64
    copy.config(mm_vision_tower="own/clip").refused("cannot be built")


def test_sizes_that_were_left_out_are_named_where_they_do_not_fit(copy):
    copy.config(vision_config={k: v for k, v in CLIP.items() if k != "num_hidden_layers"})
    assert "the vision encoder's config has no num_hidden_layers: 12, the default" in copy.refused("missing").message


def test_a_stray_file_is_not_the_checkpoints_business(copy):
    save_file({"a": torch.ones(1)}, copy.folder / "optimizer.safetensors")
    (copy.folder / "README.md").write_text("Nothing.")
    assert copy.open().name == "MobileVLM_tiny"
