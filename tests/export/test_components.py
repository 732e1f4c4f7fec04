"""Our components against transformers' own, from the same weights: an independent reference for every stage."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from edge import plugins
from exporters.models.attention import GrowingCache, Rope
from exporters.models.component import Component
from exporters.models.decoders import llama
from exporters.models.vision import clip

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def llama_pair(dtype=torch.float32, **changes):
    settings = {
        "vocab_size": 97,
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
    } | changes
    torch.manual_seed(1)
    theirs = LlamaForCausalLM(LlamaConfig(**settings)).eval().to(dtype).requires_grad_(False)
    config = llama.from_config(theirs.config.to_dict())
    component = Component("decoder", lambda: llama.Decoder(config), llama.keys(config))
    return theirs.float(), component.load(Shaped(theirs.to(dtype).state_dict()))


class Shaped(dict):
    """A state dict with what `Weights` adds to a mapping."""

    def shape(self, name):
        return tuple(self[name].shape)


def cache_of(decoder):
    return GrowingCache(decoder.config.heads, decoder.config.kv_heads, decoder.config.rope)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 1, "head_dim": 32},
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        {"attention_bias": True, "mlp_bias": True},
    ],
)
@torch.inference_mode()
def test_decoder_is_transformers_llama(changes):
    theirs, ours = llama_pair(**changes)
    embeds = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(2))
    expected = theirs(inputs_embeds=embeds).logits[:, -1:]
    torch.testing.assert_close(ours(embeds, cache_of(ours)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_weights_of_every_dtype_are_computed_in_float32(dtype):
    theirs, ours = llama_pair(dtype)
    ids = torch.tensor([[1, 5, 90, 3]])
    assert ours.embed_tokens.weight.dtype == torch.float32
    expected = theirs.float()(ids).logits[:, -1:]
    torch.testing.assert_close(ours(ours.embed_tokens(ids), cache_of(ours)), expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_cached_is_uncached_and_split_is_whole():
    _, decoder = llama_pair(num_key_value_heads=2)
    embeds = torch.randn(1, 12, 64, generator=torch.Generator().manual_seed(3))
    for pieces in ([12], [7, 5], [1] * 12, [10, 1, 1]):
        cache, start = cache_of(decoder), 0
        for piece in pieces:
            logits = decoder(embeds[:, start : start + piece], cache)
            start += piece
        torch.testing.assert_close(logits, decoder(embeds, cache_of(decoder)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize(("layer", "feature"), [(-2, "patch"), (-1, "patch"), (-2, "cls_patch"), (1, "patch")])
@torch.inference_mode()
def test_tower_is_transformers_clip(activation, layer, feature):
    torch.manual_seed(4)
    settings = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        hidden_act=activation,
    )
    theirs = CLIPVisionModel(settings).eval().requires_grad_(False)
    state = theirs.state_dict()
    prefix = next(k for k in state if k.endswith("embeddings.class_embedding")).removesuffix(
        "embeddings.class_embedding"
    )
    config = clip.from_config(settings.to_dict(), select_layer=layer, select_feature=feature)
    ours = Component("vision", lambda: clip.Tower(config), clip.keys(config, prefix)).load(Shaped(state))
    pixels = torch.randn(2, 3, 56, 56)
    hidden = theirs(pixels, output_hidden_states=True).hidden_states[layer]
    expected = hidden if feature == "cls_patch" else hidden[:, 1:]
    torch.testing.assert_close(ours(pixels), expected, rtol=1e-4, atol=1e-5)
    assert ours(pixels).shape[1] == config.tokens


def test_unknown_rope_scaling_is_refused():
    with pytest.raises(Exception, match="yarn"):
        Rope(32, 10000.0, {"rope_type": "yarn", "factor": 4.0}).inv_freq()


@pytest.mark.parametrize("package", [f"exporters.models.{kind}" for kind in ("vision", "projectors", "decoders")])
def test_every_alternative_has_a_tiny_twin(package):
    assert plugins.names(package)
    for name in plugins.names(package):
        module = plugins.load(package, name)
        assert hasattr(module, "tiny"), f"{package}.{name} has no tiny()"
        assert sum(p.numel() for p in module.tiny().parameters()) < 200_000
