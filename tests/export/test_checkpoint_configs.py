"""config.json in LLaVA's dialect: what it says of decoder, image and prompt, what is refused, and weights that do not
fit it."""

from __future__ import annotations

import pytest
import torch
from checkpoint_copies import CLIP, TOWER, Copy, state

from edge.errors import UsageError


@pytest.fixture
def copy(exports, tmp_path):
    return Copy(exports.checkpoint(dtype="float32"), tmp_path / "MobileVLM_tiny")


@pytest.mark.parametrize(
    ("changes", "match", "hint"),
    [
        ({"vision_tower_type": "dinov2"}, "'dinov2'", "clip, internvit, siglip"),
        (
            {"vision_tower_type": None, "mm_vision_tower": "facebook/dinov2"},
            "'facebook/dinov2'",
            "clip, internvit, siglip",
        ),
        (
            {"vision_tower_type": None, "mm_vision_tower": "own", "vision_config": {"model_type": "dinov2"}},
            "'dinov2'",
            "siglip_vision_model",
        ),
        ({"mm_vision_tower": None}, "mm_vision_tower is None", None),
        ({"mm_vision_select_layer": -9}, "mm_vision_select_layer is -9, of 3 layers", None),
        ({"mm_vision_select_feature": "cls"}, "'cls'", "patch, cls_patch"),
        ({"vision_config": CLIP | {"hidden_act": "gelu_new"}}, "gelu_new", "quick_gelu"),
        ({"vision_config": CLIP | {"num_attention_heads": 5}}, "cannot be built", None),
        ({"vision_config": [1]}, "vision_config", "object"),
        ({"mm_hidden_size": 1024}, "mm_hidden_size is 1024, the vision tower is 64", None),
        (
            {"mm_projector_type": "ldpnetv3"},
            "'ldpnetv3'",
            "ldpnet, ldpnetv2, linear, minigpt, mlp{depth}x_gelu, pixel_shuffle, internvl, qformer, resampler",
        ),
        ({"mm_vision_select_feature": "cls_patch"}, "ldpnetv2 cannot place the class token", None),
        ({"model_type": "qwen2_vl"}, "'qwen2_vl'", "llava_llama, llava_mistral, llava_next"),
        (
            {"model_type": "llava", "mm_vision_tower": ...},
            "describes a 'llava' in a layout that no dialect recognises",
            "llava by mm_vision_tower",
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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 1025),
        ("vocab_size", 10**18),
        ("hidden_size", 10**10),
        ("intermediate_size", 10**12),
        ("head_dim", 10**12),
        ("max_position_embeddings", 10**15),
        ("num_attention_heads", 10**9),
    ],
)
def test_a_size_that_no_model_has_is_told_before_anything_is_built(copy, key, value):
    error = copy.config(**{key: value}).refused("does not describe a language model|cannot be built|rotates 0")
    assert len(error.message) < 1000


@pytest.mark.parametrize("key", ["patch_size", "hidden_size", "num_hidden_layers", "intermediate_size", "image_size"])
def test_a_size_that_no_encoder_has_is_told(copy, key):
    copy.config(vision_config=CLIP | {key: 10**9}).refused(f"the vision encoder's {key} is 1000000000")


def test_a_model_card_of_a_megabyte_is_read_at_once(copy):
    """Its front matter was looked for by a pattern that took an hour and a half."""
    (copy.folder / "README.md").write_text("---" + "\n" * 1_000_000)
    (copy.folder / "LICENSE").write_text("\n" * 1_000_000 + "MIT")
    assert copy.open().license == "unknown"
    (copy.folder / "README.md").write_text("---\ntags: [x]\nlicense: 'apache-2.0'\n---\n" + "x" * 1_000_000)
    assert copy.open().license == "apache-2.0"
    (copy.folder / "README.md").write_text("---\nlicense: mit\n")
    assert copy.open().license == "unknown"
