"""Qwen2 and Qwen2.5 (arXiv 2407.10671): Llama's shape, with a bias on queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from exporters.models import prenorm, prenorm_tensors
from exporters.models.decoders import Rows
from exporters.models.source import Source

KIND = "qwen2"
MODEL_TYPES = ("qwen2", "llava_qwen2", "llava_qwen", "llava-qwen2", "bunny-qwen2")
ARCHITECTURE = "qwen2"
NEIGHBOURS = False  # llama.cpp rotates the halves of a head, as checkpoints have them
TENSORS = {  # of a layer, in a GGUF file
    "input_layernorm": ("attn_norm",),
    "qkv_proj": ("attn_q", "attn_k", "attn_v"),
    "o_proj": ("attn_output",),
    "post_attention_layernorm": ("ffn_norm",),
    "gate_up_proj": ("ffn_gate", "ffn_up"),
    "down_proj": ("ffn_down",),
}
DEFAULTS: Mapping[str, Any] = {  # transformers' Qwen2Config
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": None,  # hidden_size / num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,  # which layers have a window: those from max_window_layers on
    "rope_theta": None,  # 10000
    "rope_scaling": None,
    "rope_parameters": None,
    "partial_rotary_factor": None,
    "original_max_position_embeddings": None,
}
TRAITS = prenorm.Traits(qkv_bias=True)


@dataclass(frozen=True)
class Config(prenorm.Config):
    """Nothing more: all of the family have the same biases."""


def from_config(config: Mapping[str, Any]) -> Config:
    """From transformers' Qwen2 names in config.json; what it leaves out is as in transformers' Qwen2Config."""
    told = {**DEFAULTS, **config}
    prenorm.refuse_windows(told)
    return Config(**prenorm.sizes(told, KIND))


def left_out(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that a config.json does not tell, as `from_config` has them."""
    told = {"sliding_window", "max_window_layers", *config}  # no sizes
    return {name: size for name, size in DEFAULTS.items() if type(size) is int and name not in told}


def from_gguf(
    own: Callable[..., Any], tensors: Collection[str], vocab: int, scaling: Mapping[str, Any] | None
) -> Config:
    return Config(**prenorm.gguf_sizes(own, tensors, vocab, scaling))


class Decoder(prenorm.Decoder):
    """`inputs_embeds` `[B, S, hidden]` -> logits of the last position `[B, 1, vocab]`, or of all, float32."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, TRAITS)


def keys(config: Config, prefix: str = "model.") -> dict[str, Source]:
    return prenorm_tensors.keys(config, TRAITS, prefix)


def gguf_tensors(config: Config) -> dict[str, tuple[Rows, ...]]:
    prenorm_tensors.refuse_in_gguf(config, ARCHITECTURE)
    return prenorm_tensors.gguf_tensors(config, TRAITS, TENSORS, NEIGHBOURS)


def gguf_settings(config: Config) -> dict[str, float]:
    return {"attention.layer_norm_rms_epsilon": config.eps}


def tiny() -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(
        Config(
            layers=2,
            hidden=64,
            ffn=96,
            heads=4,
            kv_heads=2,
            head_dim=16,
            vocab=320,
            context=512,
            rope_theta=1e6,
            tied=True,
        )
    )
    decoder.lm_head.weight.data.copy_(decoder.embed_tokens.weight.data)
    return decoder
