"""Llama-shaped language models (arXiv 2302.13971): MobileLLaMA, Vicuna, TinyLlama and their kin."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from exporters.models import prenorm, prenorm_tensors
from exporters.models.decoders import Rows
from exporters.models.source import Source

KIND = "llama"
MODEL_TYPES = ("llama", "mobilevlm", "mobilellama", "llava_llama", "llava", "bunny-llama")
ARCHITECTURE = "llama"
NEIGHBOURS = True  # llama.cpp rotates neighbouring rows of a head, where checkpoints have its halves
TENSORS = {  # of a layer, in a GGUF file
    "input_layernorm": ("attn_norm",),
    "qkv_proj": ("attn_q", "attn_k", "attn_v"),
    "o_proj": ("attn_output",),
    "post_attention_layernorm": ("ffn_norm",),
    "gate_up_proj": ("ffn_gate", "ffn_up"),
    "down_proj": ("ffn_down",),
}
DEFAULTS: Mapping[str, Any] = {  # transformers' LlamaConfig
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,  # as many as heads
    "head_dim": None,  # hidden_size / num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_theta": None,  # 10000
    "rope_scaling": None,
    "rope_parameters": None,
    "partial_rotary_factor": None,
    "original_max_position_embeddings": None,
}


@dataclass(frozen=True)
class Config(prenorm.Config):
    attention_bias: bool = False  # of queries, keys, values and the output
    mlp_bias: bool = False

    @property
    def traits(self) -> prenorm.Traits:
        return prenorm.Traits(qkv_bias=self.attention_bias, o_bias=self.attention_bias, mlp_bias=self.mlp_bias)


def from_config(config: Mapping[str, Any]) -> Config:
    """From transformers' Llama names in config.json; what it leaves out is as in transformers' LlamaConfig."""
    told = {**DEFAULTS, **config}
    return Config(**prenorm.sizes(told, KIND), attention_bias=told["attention_bias"], mlp_bias=told["mlp_bias"])


def left_out(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that a config.json does not tell, as `from_config` has them."""
    return {name: size for name, size in DEFAULTS.items() if type(size) is int and name not in config}


def from_gguf(
    own: Callable[..., Any], tensors: Collection[str], vocab: int, scaling: Mapping[str, Any] | None
) -> Config:
    return Config(
        **prenorm.gguf_sizes(own, tensors, vocab, scaling),
        attention_bias="blk.0.attn_q.bias" in tensors,
        mlp_bias="blk.0.ffn_gate.bias" in tensors,
    )


class Decoder(prenorm.Decoder):
    """`inputs_embeds` `[B, S, hidden]` -> logits of the last position `[B, 1, vocab]`, or of all, float32."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.traits)


def keys(config: Config, prefix: str = "model.") -> dict[str, Source]:
    return prenorm_tensors.keys(config, config.traits, prefix)


def gguf_tensors(config: Config) -> dict[str, tuple[Rows, ...]]:
    return prenorm_tensors.gguf_tensors(config, config.traits, TENSORS, NEIGHBOURS)


def gguf_settings(config: Config) -> dict[str, float]:
    return {"attention.layer_norm_rms_epsilon": config.eps}


def tiny() -> Decoder:
    torch.manual_seed(0)
    return Decoder(Config(layers=2, hidden=64, ffn=96, heads=4, kv_heads=2, head_dim=16, vocab=320, context=512))
