"""Gemma 1 (arXiv 2403.08295): Llama's shape with gates of GELU, norms kept as how far a gain is from one, and rows that
are scaled where they go in.

All rows are scaled there, those of images too: as transformers 4 does, with which the models that see were trained, and
as llama.cpp does. transformers 5 scales those of tokens only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from edge.errors import CheckpointError
from exporters.models import prenorm, prenorm_tensors
from exporters.models.decoders import Rows
from exporters.models.source import OnePlus, Source

KIND = "gemma"
MODEL_TYPES = ("gemma",)
ARCHITECTURE = "gemma"
NEIGHBOURS = False  # llama.cpp rotates the halves of a head, as checkpoints have them
ACTIVATIONS = ("gelu_pytorch_tanh", "gelu")  # the latter is how the first releases wrote the former
TENSORS = {  # of a layer, in a GGUF file
    "input_layernorm": ("attn_norm",),
    "qkv_proj": ("attn_q", "attn_k", "attn_v"),
    "o_proj": ("attn_output",),
    "post_attention_layernorm": ("ffn_norm",),
    "gate_up_proj": ("ffn_gate", "ffn_up"),
    "down_proj": ("ffn_down",),
}
DEFAULTS: Mapping[str, Any] = {  # transformers' GemmaConfig
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": None,  # what transformers 4 obeys before hidden_act
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_bidirectional_attention": None,
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
        bias = self.attention_bias
        return prenorm.Traits(qkv_bias=bias, o_bias=bias, activation="gelu_tanh", scaled=True)


def from_config(config: Mapping[str, Any]) -> Config:
    """From transformers' Gemma names in config.json; what it leaves out is as in transformers' GemmaConfig."""
    told = {**DEFAULTS, **config}
    told["hidden_act"] = told["hidden_activation"] or told["hidden_act"]
    if told["use_bidirectional_attention"]:
        raise CheckpointError("use_bidirectional_attention is true, which is not supported", hint="a causal decoder")
    sizes = prenorm.sizes(told, KIND, activations=ACTIVATIONS)
    return Config(**sizes, attention_bias=told["attention_bias"])


def left_out(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that a config.json does not tell, as `from_config` has them."""
    return {name: size for name, size in DEFAULTS.items() if type(size) is int and name not in config}


def from_gguf(
    own: Callable[..., Any], tensors: Collection[str], vocab: int, scaling: Mapping[str, Any] | None
) -> Config:
    return Config(**prenorm.gguf_sizes(own, tensors, vocab, scaling))  # llama.cpp has no biases of it


class Decoder(prenorm.Decoder):
    """`inputs_embeds` `[B, S, hidden]` -> logits of the last position `[B, 1, vocab]`, or of all, float32."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.traits)


def keys(config: Config, prefix: str = "model.") -> dict[str, Source]:
    return prenorm_tensors.keys(config, config.traits, prefix, norm=OnePlus())


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
            kv_heads=1,
            head_dim=32,
            vocab=320,
            context=512,
            tied=True,
        )
    )
    decoder.lm_head.weight.data.copy_(decoder.embed_tokens.weight.data)
    return decoder
