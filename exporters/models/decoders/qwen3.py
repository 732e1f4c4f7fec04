"""Qwen3 (arXiv 2505.09388), the dense models: Llama's shape, with a norm of each head's query and key."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from exporters.models import prenorm, prenorm_tensors
from exporters.models.decoders import Rows
from exporters.models.source import Source

KIND = "qwen3"
MODEL_TYPES = ("qwen3", "llava_qwen3")
ARCHITECTURE = "qwen3"
NEIGHBOURS = False  # llama.cpp rotates the halves of a head, as checkpoints have them
TENSORS = {  # of a layer, in a GGUF file
    "input_layernorm": ("attn_norm",),
    "qkv_proj": ("attn_q", "attn_k", "attn_v"),
    "head_norms.query": ("attn_q_norm",),
    "head_norms.key": ("attn_k_norm",),
    "o_proj": ("attn_output",),
    "post_attention_layernorm": ("ffn_norm",),
    "gate_up_proj": ("ffn_gate", "ffn_up"),
    "down_proj": ("ffn_down",),
}
DEFAULTS: Mapping[str, Any] = {  # transformers' Qwen3Config
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
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


@dataclass(frozen=True)
class Config(prenorm.Config):
    attention_bias: bool = False  # of queries, keys, values and the output

    @property
    def traits(self) -> prenorm.Traits:
        return prenorm.Traits(qkv_bias=self.attention_bias, o_bias=self.attention_bias, head_norms=True)


def from_config(config: Mapping[str, Any]) -> Config:
    """From transformers' Qwen3 names in config.json; what it leaves out is as in transformers' Qwen3Config."""
    told = {**DEFAULTS, **config}
    prenorm.refuse_windows(told)
    return Config(**prenorm.sizes(told, KIND), attention_bias=told["attention_bias"])


def left_out(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that a config.json does not tell, as `from_config` has them."""
    told = {"sliding_window", "max_window_layers", *config}  # no sizes
    return {name: size for name, size in DEFAULTS.items() if type(size) is int and name not in told}


def from_gguf(
    own: Callable[..., Any], tensors: Collection[str], vocab: int, scaling: Mapping[str, Any] | None
) -> Config:
    bias = "blk.0.attn_q.bias" in tensors
    return Config(**prenorm.gguf_sizes(own, tensors, vocab, scaling), attention_bias=bias)


class Decoder(prenorm.Decoder):
    """`inputs_embeds` `[B, S, hidden]` -> logits of the last position `[B, 1, vocab]`, or of all, float32."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.traits)


def keys(config: Config, prefix: str = "model.") -> dict[str, Source]:
    return prenorm_tensors.keys(config, config.traits, prefix)


def gguf_tensors(config: Config) -> dict[str, tuple[Rows, ...]]:
    prenorm_tensors.refuse_in_gguf(config, ARCHITECTURE, config.attention_bias)
    return prenorm_tensors.gguf_tensors(config, config.traits, TENSORS, NEIGHBOURS)


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
            head_dim=32,
            vocab=320,
            context=512,
            rope_theta=1e6,
            tied=True,
        )
    )
    decoder.lm_head.weight.data.copy_(decoder.embed_tokens.weight.data)
    return decoder
