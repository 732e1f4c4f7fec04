"""Vision towers of LLaVA's dialect: where one lies, and what is known of it."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoint_copies import CLIP, TOWER, Copy, state

from edge.errors import CheckpointError
from exporters.models.vision import siglip
from exporters.sources import hub, tower


@pytest.fixture
def copy(exports, tmp_path):
    return Copy(exports.checkpoint(dtype="float32"), tmp_path / "MobileVLM_tiny")


def test_tower_under_the_shorter_name(copy):
    short = {name.replace("vision_tower.vision_tower.", "vision_tower."): t for name, t in copy.tensors.items()}
    found = copy.save(short).open()
    key = "model.vision_tower.vision_model.pre_layrnorm.weight"
    assert torch.equal(state(found, "vision")["pre_layrnorm.weight"], short[key])


@pytest.mark.parametrize("place", ["beside", "inside", "given"])
@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_tower_in_a_folder_of_its_own(copy, tmp_path, place, prefix):
    folders = {
        "beside": tmp_path / "clip-vit-large-patch14-336",
        "inside": copy.folder / "clip-vit-large-patch14-336",
        "given": tmp_path / "anywhere",
    }
    expected = copy.tensors[TOWER + "encoder.layers.0.self_attn.k_proj.weight"]
    folders[place].parent.mkdir(exist_ok=True)
    text = {"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2, 2), "logit_scale": torch.tensor(1.0)}
    copy.move_tower(folders[place], prefix, text if prefix else None)
    found = copy.open(vision_tower=folders[place] if place == "given" else None)
    assert torch.equal(state(found, "vision")["layers.0.self_attn.k_proj.weight"], expected)
    assert found.spec.image.size == 336


def test_a_folder_elsewhere_is_read_only_where_the_user_names_it(copy, tmp_path):
    """A checkpoint from somebody else may name any folder of this machine."""
    elsewhere = tmp_path / "private" / "clip"
    elsewhere.parent.mkdir()
    copy.move_tower(elsewhere)
    (elsewhere / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"} | CLIP))
    for name in (str(elsewhere), f"{tmp_path.name}/../private/clip"):
        error = copy.config(mm_vision_tower=name).refused("no weights of the vision tower")
    error = copy.config(mm_vision_tower=str(elsewhere)).refused("read only where you name it")
    assert error.hint == f"--vision-tower {elsewhere}"
    assert copy.open(vision_tower=elsewhere)


def test_the_hub_is_asked_only_for_what_is_published(copy, tmp_path, monkeypatch, caplog):
    """It is asked with the user's token."""
    asked = []

    def fetch(name):
        asked.append(name)
        raise CheckpointError("the hub cannot be asked")

    monkeypatch.setattr(tower.hub, "fetch", fetch)
    monkeypatch.setattr(tower.hub, "fetch_configs", fetch)
    copy.move_tower(tmp_path / "elsewhere")
    for name in ("tracker/beacon-clip", "tracker/clip-vit-large-patch14-336", "openai.evil/clip-vit-large-patch14"):
        error = copy.config(mm_vision_tower=name).refused(f"the hub is not asked for '{name}'")
        assert f"hf download {name} --local-dir DIR" in error.hint
    assert asked == []
    copy.config(mm_vision_tower="openai/clip-vit-large-patch14-336").refused("the hub cannot be asked")
    assert asked == ["openai/clip-vit-large-patch14-336"]
    assert "asking the hub for its weights" in caplog.text


def test_a_tower_beside_the_checkpoint_is_told(copy, tmp_path, caplog):
    copy.move_tower(tmp_path / "clip-vit-large-patch14-336")
    copy.open()
    assert f"the vision tower is taken from {tmp_path / 'clip-vit-large-patch14-336'}" in caplog.text


def test_a_given_tower_replaces_the_one_inside(copy, tmp_path):
    mine = {f"vision_model.{k.removeprefix(TOWER)}": t + 1 for k, t in copy.tensors.items() if k.startswith(TOWER)}
    copy.save(mine, tmp_path / "mine")
    found = copy.open(vision_tower=tmp_path / "mine")
    ours = state(found, "vision")["embeddings.class_embedding"]
    assert torch.equal(ours, mine["vision_model.embeddings.class_embedding"])


def test_a_tower_that_is_nowhere_lists_the_places(copy, tmp_path, monkeypatch):
    copy.move_tower(tmp_path / "elsewhere")

    def fetch(name):
        raise CheckpointError(f"{name} cannot be asked for")

    monkeypatch.setattr(hub, "fetch", fetch)
    error = copy.refused("no weights of the vision tower 'openai/clip-vit-large-patch14-336'")
    assert str(copy.folder / "clip-vit-large-patch14-336") in error.message
    assert str(tmp_path / "clip-vit-large-patch14-336") in error.message
    assert "openai/clip-vit-large-patch14-336 cannot be asked for" in error.message
    assert "--vision-tower DIR" in error.hint


def test_a_tower_from_the_hub(copy, tmp_path, monkeypatch):
    copy.move_tower(tmp_path / "cache")
    monkeypatch.setattr(hub, "fetch", {"openai/clip-vit-large-patch14-336": tmp_path / "cache"}.__getitem__)
    assert "vision_model.pre_layrnorm.bias" in copy.open().weights


def test_a_folder_without_a_tower(copy, tmp_path):
    copy.save({"bert.weight": torch.ones(2)}, tmp_path / "bert")
    assert "--vision-tower" in copy.refused("holds no vision tower", vision_tower=tmp_path / "bert").hint
    copy.refused("is not a folder", vision_tower=tmp_path / "nowhere")


def test_tower_sizes_come_from_a_config_where_there_is_one(copy, tmp_path):
    copy.config(vision_config=CLIP | {"num_attention_heads": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6})
    tower = copy.open().components["vision"].build().config
    assert (tower.heads, tower.activation, tower.eps, tower.layers, tower.run_layers) == (4, "gelu", 1e-6, 3, 2)
    copy.config(drop=["vision_config"])
    tower = copy.open().components["vision"].build().config
    assert (tower.heads, tower.activation, tower.ffn, tower.patch_size) == (1, "quick_gelu", 96, 14)
    copy.move_tower(tmp_path / "mine")
    (tmp_path / "mine" / "config.json").write_text(json.dumps({"vision_config": CLIP | {"num_attention_heads": 2}}))
    tower = copy.open(vision_tower=tmp_path / "mine").components["vision"].build().config
    assert (tower.heads, tower.hidden, tower.image_size) == (2, 64, 336)


def test_a_tower_of_which_nothing_is_known_is_not_guessed(copy):
    error = copy.config(mm_vision_tower="laion/CLIP-ViT-H-14-laion2B-s32B-b79K").refused("heads and the activation")
    assert "config.json" in error.hint


def siglip_tower(copy, config):
    """The copy sees through a SigLIP tower of random numbers, of which its config tells."""
    tower = siglip.Tower(siglip.from_config(config, select_layer=None))
    where = siglip.keys(tower.config, TOWER)
    tensors = {where[name].names[0]: torch.randn(t.shape) for name, t in tower.state_dict().items()}
    copy.save({k: v for k, v in copy.tensors.items() if not k.startswith(TOWER)} | tensors)
    return tensors


@pytest.mark.parametrize("name", ["google/siglip-so400m-patch14-384", "own"])
@pytest.mark.parametrize(("ratio", "fit"), [("pad", "pad"), (None, "stretch"), ("square", "stretch")])
def test_a_siglip_tower(copy, name, ratio, fit):
    config = {**CLIP, "hidden_act": "gelu_pytorch_tanh", "model_type": "siglip_vision_model", "image_size": 378}
    tensors = siglip_tower(copy, config)
    head = {TOWER + "head.probe": torch.ones(1, 1, 64), TOWER + "head.mlp.fc1.bias": torch.ones(96)}
    copy.save(copy.tensors | head)
    found = copy.config(
        vision_tower_type=None, mm_vision_tower=name, vision_config=config, image_aspect_ratio=ratio
    ).open()
    tower = found.components["vision"].build().config
    assert (tower.grid, tower.run_layers, tower.activation) == (27, 2, "gelu_tanh")
    assert torch.equal(
        state(found, "vision")["embeddings.patch_embedding.bias"], tensors[TOWER + "embeddings.patch_embedding.bias"]
    )
    image = found.spec.image
    assert (image.size, image.fit, image.mean, image.std) == (378, fit, (0.5,) * 3, (0.5,) * 3)
    assert found.spec.prompt.image_tokens == 144
    copy.config(mm_vision_select_feature="cls_patch").refused("no class token")
    surplus = TOWER + "embeddings.class_embedding"
    copy.config(mm_vision_select_feature="patch").save(copy.tensors | {surplus: torch.ones(64)}).refused(surplus)
