"""Phi-3 and Phi-4-mini (arXiv 2404.14219): Llama's shape, with matmuls that checkpoints keep joined. Of each head a
part may be left unrotated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from exporters.models import prenorm, prenorm_tensors, rope_config
from exporters.models.decoders import Rows
from exporters.models.source import Source

KIND = "phi3"
MODEL_TYPES = ("phi3", "bunny-phi3")
ARCHITECTURE = "phi3"
NEIGHBOURS = False  # llama.cpp rotates the halves of a head, as checkpoints have them
JOINED = {"qkv_proj": ("self_attn.qkv_proj",), "gate_up_proj": ("mlp.gate_up_proj",)}  # of a layer, in a checkpoint
TENSORS = {  # of a layer, in a GGUF file
    "input_layernorm": ("attn_norm",),
    "qkv_proj": ("attn_qkv",),
    "o_proj": ("attn_output",),
    "post_attention_layernorm": ("ffn_norm",),
    "gate_up_proj": ("ffn_up",),
    "down_proj": ("ffn_down",),
}
DEFAULTS: Mapping[str, Any] = {  # transformers' Phi3Config
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,  # as many as heads
    "head_dim": None,  # hidden_size / num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "rope_theta": None,  # 10000
    "rope_scaling": None,
    "rope_parameters": None,
    "partial_rotary_factor": None,  # 1
    "original_max_position_embeddings": None,
}
TRAITS = prenorm.Traits()


@dataclass(frozen=True)
class Config(prenorm.Config):
    """Nothing more: no layer has a bias."""


def from_config(config: Mapping[str, Any]) -> Config:
    """From transformers' Phi3 names in config.json; what it leaves out is as in transformers' Phi3Config."""
    told = {**DEFAULTS, **config}
    return Config(**prenorm.sizes(told, KIND, partial=1.0) | {"context": rope_config.context(told)})


def left_out(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that a config.json does not tell, as `from_config` has them."""
    return {name: size for name, size in DEFAULTS.items() if type(size) is int and name not in config}


def from_gguf(
    own: Callable[..., Any], tensors: Collection[str], vocab: int, scaling: Mapping[str, Any] | None
) -> Config:
    return Config(**prenorm.gguf_sizes(own, tensors, vocab, scaling, partial=True))


class Decoder(prenorm.Decoder):
    """`inputs_embeds` `[B, S, hidden]` -> logits of the last position `[B, 1, vocab]`, or of all, float32."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, TRAITS)


def keys(config: Config, prefix: str = "model.") -> dict[str, Source]:
    return prenorm_tensors.keys(config, TRAITS, prefix, joined=JOINED)


def gguf_tensors(config: Config) -> dict[str, tuple[Rows, ...]]:
    prenorm_tensors.refuse_in_gguf(config, ARCHITECTURE)
    return prenorm_tensors.gguf_tensors(config, TRAITS, TENSORS, NEIGHBOURS)


def gguf_settings(config: Config) -> dict[str, float]:
    return {"attention.layer_norm_rms_epsilon": config.eps, "rope.dimension_count": config.rope.width}


def tiny() -> Decoder:
    torch.manual_seed(0)
    return Decoder(Config(layers=2, hidden=64, ffn=96, heads=4, kv_heads=4, head_dim=16, vocab=320, context=512))
