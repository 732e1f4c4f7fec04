"""Checkpoints of LLaVA's dialect: what is read from where, and what is refused, by name."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from edge.errors import CheckpointError, EdgeError, UsageError
from exporters import hub, standin
from exporters.checkpoint import open_checkpoint
from exporters.checkpoints import llava

TOWER = "model.vision_tower.vision_tower.vision_model."
CLIP = {
    "image_size": 336,
    "patch_size": 14,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "intermediate_size": 96,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("standin") / "MobileVLM_tiny"
    standin.write(folder, standin.SHAPES["tiny"], dtype=torch.float32)
    return folder


class Copy:
    """A copy of the stand-in that a test may change."""

    def __init__(self, original, folder):
        self.folder = folder
        shutil.copytree(original, folder)

    def config(self, drop=(), **changes):
        return self.json("config.json", drop, **changes)

    def json(self, file, drop=(), **changes):
        path = self.folder / file
        data = (json.loads(path.read_text()) if path.exists() else {}) | changes
        path.write_text(json.dumps({k: v for k, v in data.items() if k not in drop}))
        return self

    @property
    def tensors(self):
        return load_file(self.folder / "model.safetensors")

    def save(self, tensors, folder=None):
        (folder or self.folder).mkdir(exist_ok=True)
        made = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(made, (folder or self.folder) / "model.safetensors")
        return self

    def open(self, **options):
        return open_checkpoint(str(self.folder), **options)

    def refused(self, match, kind=CheckpointError, **options):
        with pytest.raises(kind, match=match) as caught:
            self.open(**options)
        return caught.value

    def move_tower(self, folder, prefix="vision_model.", extra=None):
        tensors = self.tensors
        tower = {prefix + k.removeprefix(TOWER): v for k, v in tensors.items() if k.startswith(TOWER)}
        self.save({k: v for k, v in tensors.items() if not k.startswith(TOWER)})
        return self.save(tower | (extra or {}), folder)


@pytest.fixture
def copy(original, tmp_path):
    return Copy(original, tmp_path / "MobileVLM_tiny")


def state(checkpoint, role):
    return checkpoint.components[role].load(checkpoint.weights).state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("format", "shards"), [("safetensors", 1), ("safetensors", 3), ("bin", 1), ("bin", 3)])
def test_every_layout_gives_the_same_components(original, tmp_path, format, shards, dtype):
    folder = tmp_path / "other"
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
    assert (prompt.image_tokens, prompt.bos_id, prompt.end_id, prompt.stop_ids) == (144, 1, 2, (2,))
    assert prompt.stop_strings == ("</s>",)
    said = prompt.system.format(text=prompt.default_system) + prompt.user.format(text="<image>\nHi") + prompt.generation
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


def test_sha256_follows_the_content_only(original, copy):
    first = open_checkpoint(str(original)).sha256
    assert copy.open().sha256 == first
    copy.config(image_aspect_ratio="square")
    assert copy.open().sha256 != first


# Where the tower lies


def test_tower_under_the_shorter_name(copy):
    short = {name.replace("vision_tower.vision_tower.", "vision_tower."): t for name, t in copy.tensors.items()}
    found = copy.save(short).open()
    key = "model.vision_tower.vision_model.pre_layrnorm.weight"
    assert torch.equal(state(found, "vision")["pre_layrnorm.weight"], short[key])


@pytest.mark.parametrize("place", ["beside", "inside", "given", "path"])
@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_tower_in_a_folder_of_its_own(copy, tmp_path, place, prefix):
    folders = {
        "beside": tmp_path / "clip-vit-large-patch14-336",
        "inside": copy.folder / "clip-vit-large-patch14-336",
        "given": tmp_path / "anywhere",
        "path": tmp_path / "clip" / "mine",
    }
    expected = copy.tensors[TOWER + "encoder.layers.0.self_attn.k_proj.weight"]
    folders[place].parent.mkdir(exist_ok=True)
    text = {"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2, 2), "logit_scale": torch.tensor(1.0)}
    copy.move_tower(folders[place], prefix, text if prefix else None)
    if place == "path":
        copy.config(mm_vision_tower=str(folders[place]))
        (folders[place] / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"} | CLIP))
    found = copy.open(vision_tower=folders[place] if place == "given" else None)
    assert torch.equal(state(found, "vision")["layers.0.self_attn.k_proj.weight"], expected)
    assert found.spec.image.size == 336


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
    assert error.hint == "--vision-tower DIR"


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


@pytest.mark.parametrize(
    ("changes", "match", "hint"),
    [
        ({"vision_tower_type": "siglip"}, "'siglip'", "clip"),
        ({"vision_tower_type": None, "mm_vision_tower": "google/siglip"}, "'google/siglip'", "clip"),
        ({"mm_vision_tower": None}, "mm_vision_tower is None", None),
        ({"mm_vision_select_layer": -9}, "mm_vision_select_layer is -9, of 3 layers", None),
        ({"mm_vision_select_feature": "cls"}, "'cls'", "patch, cls_patch"),
        ({"vision_config": CLIP | {"hidden_act": "gelu_new"}}, "gelu_new", "quick_gelu"),
        ({"vision_config": CLIP | {"num_attention_heads": 5}}, "cannot be built", None),
        ({"vision_config": [1]}, "vision_config", "object"),
        ({"mm_hidden_size": 1024}, "mm_hidden_size is 1024, the vision tower is 64", None),
        ({"mm_projector_type": "ldpnetv3"}, "'ldpnetv3'", "ldpnet, ldpnetv2, linear, mlp{depth}x_gelu"),
        ({"mm_vision_select_feature": "cls_patch"}, "ldpnetv2 cannot place the class token", None),
        ({"model_type": "qwen2_vl"}, "'qwen2_vl'", ", ".join(llava.MODEL_TYPES)),
        (
            {"model_type": "llava", "mm_vision_tower": ...},
            "transformers' own layout of a 'llava'",
            "original repository",
        ),
        ({"image_aspect_ratio": "anyres"}, "'anyres'", "pad, square"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end", None),
        ({"mm_use_im_start_end": "yes"}, "mm_use_im_start_end 'yes'", None),
        ({"mm_resampler_type": "spatial_pool"}, "mm_resampler_type 'spatial_pool'", "null"),
        ({"mm_resampler_type": "perceiver", "mm_perceiver_depth": 3}, "mm_resampler_type 'perceiver'", None),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type 'spatial_unpad'", "flat"),
        ({"mm_spatial_pool_stride": 2}, "mm_spatial_pool_stride 2", None),
        ({"s2": True, "s2_scales": "336,672"}, "s2 True", None),
        ({"image_aspect_ratio": ["pad"]}, r"image_aspect_ratio \['pad'\]", "pad, square"),
        (
            {"mm_vision_select_layer": [-2, -5, -8, 6]},
            r"mm_vision_select_layer is \[-2, -5, -8, 6\]: .*not joined",
            "one",
        ),
        ({"mm_vision_select_layer": [-2]}, r"mm_vision_select_layer is \[-2\]", "one layer"),
        ({"mm_vision_select_layer": "-2"}, "mm_vision_select_layer is '-2'", None),
        ({"mm_vision_select_layer": True}, "mm_vision_select_layer is True", None),
        ({"mm_vision_select_layer": None}, "mm_vision_select_layer is None", None),
        ({"mm_vision_select_feature": ["patch"]}, r"mm_vision_select_feature is \['patch'\]", "patch, cls_patch"),
        ({"mm_projector_type": "identity"}, "'identity'", "linear"),
        ({"quantization_config": {"bits": 4}}, "quantised already", None),
        ({"hidden_act": "relu"}, "'relu'", "silu"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "'yarn'", "linear, llama3"),
        ({"num_key_value_heads": 3}, "cannot be built", None),
        ({"hidden_size": ...}, "config.json has no hidden_size: 4096, the default", None),
        ({"eos_token_id": 512}, r"eos_token_id is 512 in config\.json: 512 is no id", None),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>' in config", None),
    ],
)
def test_configs_that_are_refused(copy, changes, match, hint):
    kept = {name: value for name, value in changes.items() if value is not ...}
    error = copy.config(drop=changes.keys() - kept.keys(), **kept).refused(match)
    assert hint is None or hint in error.hint


# What the code of LLaVA and MobileVLM writes into config.json besides, in the published folders and in those of users
PUBLISHED_KEYS = {
    "freeze_mm_mlp_adapter": False,
    "freeze_mm_vision_resampler": False,
    "image_crop_resolution": 224,
    "image_grid_pinpoints": None,
    "image_split_resolution": 224,
    "initializer_range": 0.02,
    "max_length": 4096,
    "max_sequence_length": 2048,
    "mm_patch_merge_type": "flat",
    "mm_projector_lr": 2e-5,
    "mm_resampler_type": None,
    "mm_use_im_patch_token": True,
    "mm_vision_tower_lr": None,
    "pad_token_id": 0,
    "pretraining_tp": 1,
    "s2": False,
    "tokenizer_model_max_length": 2048,
    "tokenizer_padding_side": "right",
    "tune_mm_mlp_adapter": False,
    "tune_mm_vision_resampler": False,
    "unfreeze_mm_vision_tower": True,
    "use_cache": True,
    "use_mm_proj": True,
}


def test_keys_of_the_published_folders_change_nothing(copy):
    plain = copy.open()
    told = copy.config(**PUBLISHED_KEYS).open()
    assert told.spec == plain.spec
    assert {role: c.keys for role, c in told.components.items()} == {
        role: c.keys for role, c in plain.components.items()
    }
    for role in ("vision", "decoder"):
        assert told.components[role].build().config == plain.components[role].build().config


# Weights that do not fit


def test_missing_keys_are_listed(copy):
    gone = ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight"]
    error = copy.save({k: v for k, v in copy.tensors.items() if k not in gone}).refused("decoder")
    assert all(f"missing: {name}" in error.message for name in gone)


@pytest.mark.parametrize("gone", ["embeddings.patch_embedding.weight", "encoder.layers.1.mlp.fc2.bias"])
def test_missing_keys_of_the_tower_are_listed(copy, gone):
    copy.save({k: v for k, v in copy.tensors.items() if k != TOWER + gone}).refused(f"missing: {TOWER + gone}")


def test_surplus_keys_are_listed(copy):
    extra = {"model.layers.2.mlp.up_proj.weight": torch.ones(1), "model.layers.0.self_attn.q_proj.bias": torch.ones(64)}
    error = copy.save(copy.tensors | extra).refused("does not use")
    assert all(name in error.message for name in extra)
    assert "embed_tokens" not in error.message


def test_what_is_never_computed_is_no_surplus(copy):
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        TOWER + "embeddings.position_ids": torch.arange(577),
    }
    found = copy.save(copy.tensors | extra).open()
    assert TOWER + "encoder.layers.2.mlp.fc1.weight" in found.weights  # the layer after the selected one
    assert "layers.2.mlp.fc1.weight" not in found.components["vision"].keys


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.mm_projector.peg.peg.0.weight",
        TOWER + "embeddings.position_embedding.weight",
        TOWER + "pre_layrnorm.bias",
    ],
)
def test_a_wrong_shape_is_named(copy, name):
    copy.config(vision_config=CLIP)
    wrong = torch.ones(3, *copy.tensors[name].shape[1:])
    error = copy.save(copy.tensors | {name: wrong}).refused("wrong shape")
    assert f"{name} {list(wrong.shape)}" in error.message


# What the config says of the decoder


def test_tied_embeddings(copy):
    tensors = copy.config(tie_word_embeddings=True).tensors
    for found in (copy.open(), copy.save({k: v for k, v in tensors.items() if k != "lm_head.weight"}).open()):
        assert torch.equal(state(found, "decoder")["lm_head.weight"], tensors["model.embed_tokens.weight"])
    copy.config(tie_word_embeddings=False).refused(r"missing: lm_head\.weight")


def test_attention_bias(copy):
    widths = {"q_proj": 64, "k_proj": 32, "v_proj": 32, "o_proj": 64}
    extra = {
        f"model.layers.{i}.self_attn.{p}.bias": torch.full((n,), float(n)) for i in (0, 1) for p, n in widths.items()
    }
    copy.save(copy.tensors | extra).refused("does not use")
    found = copy.config(attention_bias=True).open()
    assert state(found, "decoder")["layers.0.qkv_proj.bias"].tolist() == [64.0] * 64 + [32.0] * 64


def test_heads_default_to_no_grouping(copy):
    wide = {k: torch.ones(64, 64) for k in copy.tensors if "k_proj" in k or "v_proj" in k if "layers" in k}
    wide = {k: v for k, v in wide.items() if not k.startswith(TOWER)}
    found = copy.save(copy.tensors | wide).config(drop=["num_key_value_heads"]).open()
    assert found.spec.decoder.kv_heads == 4


@pytest.mark.parametrize(
    ("drop", "changes", "theta"),
    [
        ([], {"rope_theta": 500000.0}, 500000.0),
        (["rope_theta"], {}, 10000.0),
        (["rope_theta"], {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, 1e6),
    ],
)
def test_rope_theta(copy, drop, changes, theta):
    assert copy.config(drop=drop, **changes).open().spec.decoder.rope_theta == theta


def test_rope_scaling_reaches_the_decoder(copy):
    found = copy.config(rope_scaling={"type": "linear", "factor": 4.0}).open()
    plain = copy.config(drop=["rope_scaling"]).open()
    rope, unscaled = (c.components["decoder"].build().config.rope.inv_freq() for c in (found, plain))
    torch.testing.assert_close(rope, unscaled / 4)


def test_context(copy):
    assert copy.config(max_position_embeddings=4096).open().spec.decoder.context == 4096
    found = copy.open(context=300)
    assert found.spec.decoder.context == found.components["decoder"].build().config.context == 300
    for context in (4097, 144, 0, -1):
        assert "at most 4096" in copy.refused(f"context of {context}", UsageError, context=context).hint
    assert copy.open(context=145).spec.decoder.context == 145


# Picture and prompt


@pytest.mark.parametrize(("value", "fit"), [("pad", "pad"), ("square", "crop"), (None, "crop"), (..., "crop")])
def test_fit(copy, value, fit):
    copy.config(drop=["image_aspect_ratio"]) if value is ... else copy.config(image_aspect_ratio=value)
    assert copy.open().spec.image.fit == fit


def test_preprocessor_config(copy):
    file = "preprocessor_config.json"
    copy.json(file, image_mean=[0.5, 0.25, 0.1], image_std=[0.5, 0.5, 1], resample=2)
    image = copy.open().spec.image
    assert (image.mean, image.std, image.background) == ((0.5, 0.25, 0.1), (0.5, 0.5, 1.0), (127, 63, 25))
    assert image.resample == "bilinear"
    copy.json(file, image_std=[0.5, 0, 1]).refused("image_std")
    copy.json(file, image_std=[0.5]).refused("image_std")
    copy.json(file, drop=["image_std"], resample=0).refused("resample 0")


def test_cls_patch_is_a_row_more(copy):
    projector = {"model.mm_projector.weight": torch.ones(64, 64), "model.mm_projector.bias": torch.ones(64)}
    copy.save({k: v for k, v in copy.tensors.items() if "mm_projector" not in k} | projector)
    copy.config(mm_projector_type="linear", mm_vision_select_feature="cls_patch")
    assert copy.open().spec.prompt.image_tokens == 577
    assert copy.config(drop=["mm_projector_type", "mm_vision_select_feature"]).open().spec.prompt.image_tokens == 576


def test_end_and_begin_ids(copy):
    assert copy.config(eos_token_id=[7, 2]).open().spec.prompt.stop_ids == (7, 2)
    prompt = copy.config(drop=["eos_token_id"]).json("generation_config.json", eos_token_id=[5]).open().spec.prompt
    assert (prompt.stop_ids, prompt.end_id) == ((5,), 5)
    copy.config(drop=["bos_token_id"])
    (copy.folder / "generation_config.json").unlink()
    prompt = copy.open().spec.prompt
    assert (prompt.bos_id, prompt.stop_ids) == (1, (2,))  # as the tokenizer has it
    assert copy.json("tokenizer_config.json", add_bos_token=False).open().spec.prompt.bos_id is None


# Folders


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
def test_any_config_is_read_or_refused(copy, data):
    config = standin.config(standin.SHAPES["tiny"], "ldpnetv2", torch.float32)
    names = [*config, "rope_scaling", "rope_parameters", "vision_config", "head_dim", "attention_bias", "license"]
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2)):
        config[name] = data.draw(st.sampled_from(JUNK))
    (copy.folder / "config.json").write_text(json.dumps(config))
    try:
        found = copy.open()
    except EdgeError:
        return
    assert set(found.components) == {"vision", "projector", "decoder"}
