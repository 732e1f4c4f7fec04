"""What a config.json leaves out is as in transformers' own configs, for the vision encoder and for the decoder."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import CheckpointError
from exporters.models.decoders import llama
from exporters.models.vision import clip

# Names of transformers -> names of ours
VISION = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "ffn",
    "layer_norm_eps": "eps",
    "hidden_act": "activation",
}
DECODER = {
    "vocab_size": "vocab",
    "hidden_size": "hidden",
    "intermediate_size": "ffn",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "context",
    "rms_norm_eps": "eps",
    "tie_word_embeddings": "tied",
    "attention_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
}
VISION_FIELDS = {
    "image_size": st.sampled_from([56, 336, 448]),
    "patch_size": st.sampled_from([14, 16]),
    "hidden_size": st.sampled_from([96, 192, 768, 1536]),
    "num_hidden_layers": st.integers(2, 30),
    "num_attention_heads": st.sampled_from([1, 2, 3, 4, 6, 12, 16]),
    "intermediate_size": st.integers(1, 5000),
    "layer_norm_eps": st.sampled_from([1e-6, 1e-5, 1e-12]),
    "hidden_act": st.sampled_from(["quick_gelu", "gelu"]),
    "num_channels": st.just(3),
    "attention_dropout": st.floats(0, 1),
    "projection_dim": st.integers(1, 100),
}
ROPE = st.one_of(
    st.fixed_dictionaries({"rope_type": st.just("default")}, optional={"rope_theta": st.sampled_from([1e4, 5e5])}),
    st.fixed_dictionaries(
        {"rope_type": st.just("linear"), "factor": st.floats(1, 8)}, optional={"rope_theta": st.just(1e6)}
    ),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("llama3"),
            "factor": st.floats(2, 8),
            "low_freq_factor": st.floats(0.5, 1),
            "high_freq_factor": st.floats(2, 4),
        },
        optional={"original_max_position_embeddings": st.sampled_from([256, 1024]), "rope_theta": st.just(5e5)},
    ),
)
DECODER_FIELDS = {
    "vocab_size": st.integers(1, 1000),
    "hidden_size": st.sampled_from([128, 256, 4096]),
    "intermediate_size": st.integers(1, 1000),
    "num_hidden_layers": st.integers(1, 40),
    "num_attention_heads": st.sampled_from([2, 4, 8]),
    "num_key_value_heads": st.sampled_from([None, 1, 2]),
    "head_dim": st.sampled_from([None, 16, 64]),
    "hidden_act": st.just("silu"),
    "max_position_embeddings": st.sampled_from([512, 4096]),
    "rms_norm_eps": st.sampled_from([1e-5, 1e-6]),
    "tie_word_embeddings": st.booleans(),
    "attention_bias": st.booleans(),
    "mlp_bias": st.booleans(),
    "pretraining_tp": st.sampled_from([1, 2]),
    "rope_scaling": st.none() | ROPE,
    "rope_theta": st.sampled_from([1e4, 1e6]),
}


def test_the_defaults_are_those_of_transformers():
    from transformers import CLIPVisionConfig, LlamaConfig

    vision, decoder = clip.from_config({}), llama.from_config({})
    assert {ours: getattr(vision, ours) for ours in VISION.values()} == {
        ours: getattr(CLIPVisionConfig(), theirs) for theirs, ours in VISION.items()
    }
    assert {ours: getattr(decoder, ours) for ours in DECODER.values()} == {
        ours: getattr(LlamaConfig(), theirs) for theirs, ours in DECODER.items()
    }
    assert decoder.rope_theta == LlamaConfig().rope_parameters["rope_theta"]


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries({}, optional=VISION_FIELDS))
def test_any_part_of_a_vision_config_is_read_as_transformers_reads_it(told):
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CLIPVisionConfig

    try:
        theirs = CLIPVisionConfig(**told)
    except StrictDataclassError:  # heads that do not divide the width
        with pytest.raises(CheckpointError, match="cannot be built"):
            clip.from_config(told)
        return
    ours = clip.from_config(told)
    assert {name: getattr(ours, name) for name in VISION.values()} == {
        name: getattr(theirs, key) for key, name in VISION.items()
    }
    # As save_pretrained writes a nested config: without what equals the default.
    assert clip.from_config(json.loads(json.dumps(theirs.to_diff_dict(), default=str))) == ours


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries({}, optional=DECODER_FIELDS))
def test_any_part_of_a_decoders_config_is_read_as_transformers_reads_it(told):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    scaling = told.get("rope_scaling") or {}
    if "rope_theta" in scaling and told.get("rope_theta", scaling["rope_theta"]) != scaling["rope_theta"]:
        with pytest.raises(CheckpointError, match="rope_theta"):
            llama.from_config(told)
        return
    ours = llama.from_config(told)
    theirs = LlamaConfig(**json.loads(json.dumps(told)))
    for config in (ours, llama.from_config(json.loads(theirs.to_json_string()))):
        assert {name: getattr(config, name) for name in DECODER.values()} == {
            name: getattr(theirs, key) for key, name in DECODER.items()
        }
        torch.testing.assert_close(config.rope.inv_freq(), LlamaRotaryEmbedding(theirs).inv_freq)


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ({"model_type": "siglip_vision_model"}, "'siglip_vision_model'"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
        ({"hidden_act": None}, "hidden_act is None"),
        ({"hidden_act": ["gelu"]}, "hidden_act is"),
        ({"num_attention_heads": 5}, "heads=5"),
        ({"num_attention_heads": None}, "num_attention_heads is None"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"hidden_size": 768.0}, r"hidden_size is 768\.0"),
        ({"image_size": [224, 224]}, r"image_size is \[224, 224\]"),
        ({"image_size": 16}, "image_size=16"),
        ({"patch_size": "14"}, "patch_size is '14'"),
        ({"num_channels": 1}, "num_channels is 1"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"layer_norm_eps": "1e-5"}, "layer_norm_eps is '1e-5'"),
    ],
)
def test_a_vision_config_that_is_not_supported_is_named(told, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        clip.from_config(told)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor 0\.5"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, r"partial_rotary_factor 0\.25"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "rope_theta 10000.0, .* 500000.0"),
        ({"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}}, "both"),
        (
            {
                "original_max_position_embeddings": 512,
                "rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 1024},
            },
            "original_max_position_embeddings 512, .* 1024",
        ),
    ],
)
def test_a_decoders_config_that_is_not_supported_is_named(told, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        llama.from_config(told)
    assert caught.value.hint
