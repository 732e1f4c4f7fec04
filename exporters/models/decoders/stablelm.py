"""StableLM and StableLM 2 (arXiv 2402.17834): Llama's layers with layer norms, of whose heads a part is rotated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from edge.errors import CheckpointError
from exporters.models import prenorm, prenorm_tensors
from exporters.models.decoders import Rows
from exporters.models.source import Source

KIND = "stablelm"
MODEL_TYPES = ("stablelm", "stablelm_epoch", "bunny-stablelm")
FIRST = MODEL_TYPES[1:]  # by the code that it was released with, before transformers had it; Bunny has that code
FIRST_NAMES = {"rope_pct": "partial_rotary_factor", "norm_eps": "layer_norm_eps"}
ARCHITECTURE = "stablelm"
EPSILON = "attention.layer_norm_epsilon"
NEIGHBOURS = False  # llama.cpp rotates the halves of a head, as checkpoints have them
PARTIAL = 0.25  # of each head is rotated, where a config does not say
REFUSED = ("qk_layernorm", "use_parallel_residual")  # of the models with 12 billion weights
TENSORS = {  # of a layer, in a GGUF file
    "input_layernorm": ("attn_norm",),
    "qkv_proj": ("attn_q", "attn_k", "attn_v"),
    "o_proj": ("attn_output",),
    "post_attention_layernorm": ("ffn_norm",),
    "gate_up_proj": ("ffn_gate", "ffn_up"),
    "down_proj": ("ffn_down",),
}
DEFAULTS: Mapping[str, Any] = {  # transformers' StableLmConfig
    "vocab_size": 50304,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": None,  # hidden_size / num_attention_heads
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "use_parallel_residual": False,
    "rope_theta": None,  # 10000
    "rope_scaling": None,
    "rope_parameters": None,
    "partial_rotary_factor": None,  # PARTIAL
    "original_max_position_embeddings": None,
}


@dataclass(frozen=True)
class Config(prenorm.Config):
    qkv_bias: bool = False

    @property
    def traits(self) -> prenorm.Traits:
        return prenorm.Traits(qkv_bias=self.qkv_bias, layer_norm=True)


def from_config(config: Mapping[str, Any]) -> Config:
    """From transformers' StableLm names in config.json, or those of its first code; what it leaves out is as in the
    config of either."""
    told = {**DEFAULTS, **_in_newer_names(config)}
    if odd := [f"{name} {told[name]!r}" for name in REFUSED if told[name]]:
        raise CheckpointError(
            f"config.json has {' and '.join(odd)}, which the {KIND} decoder does not compute",
            hint="a model of StableLM 3B, or of StableLM 2 1.6B",
        )
    return Config(**prenorm.sizes(told, KIND, eps="layer_norm_eps", partial=PARTIAL), qkv_bias=told["use_qkv_bias"])


def _in_newer_names(config: Mapping[str, Any]) -> Mapping[str, Any]:
    if config.get("model_type") not in FIRST:
        return config
    for old, new in FIRST_NAMES.items():
        if old in config and config.get(new, config[old]) != config[old]:
            raise CheckpointError(
                f"config.json has {old} {config[old]!r}, and {new} {config[new]!r}", hint="keep the right one"
            )
    renamed = {new: config[old] for old, new in FIRST_NAMES.items() if old in config}
    return {"use_qkv_bias": True, **config, **renamed}


def left_out(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that a config.json does not tell, as `from_config` has them."""
    return {name: size for name, size in DEFAULTS.items() if type(size) is int and name not in config}


def from_gguf(
    own: Callable[..., Any], tensors: Collection[str], vocab: int, scaling: Mapping[str, Any] | None
) -> Config:
    if own("use_parallel_residual", False) or "blk.0.ffn_norm.weight" not in tensors:
        raise CheckpointError("the decoder has parallel residuals, which are not computed", hint="another model")
    sizes = prenorm.gguf_sizes(own, tensors, vocab, scaling, eps=EPSILON, partial=True)
    return Config(**sizes, qkv_bias="blk.0.attn_q.bias" in tensors)


class Decoder(prenorm.Decoder):
    """`inputs_embeds` `[B, S, hidden]` -> logits of the last position `[B, 1, vocab]`, or of all, float32."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.traits)


def keys(config: Config, prefix: str = "model.") -> dict[str, Source]:
    return prenorm_tensors.keys(config, config.traits, prefix)


def gguf_tensors(config: Config) -> dict[str, tuple[Rows, ...]]:
    prenorm_tensors.refuse_in_gguf(config, ARCHITECTURE)
    return prenorm_tensors.gguf_tensors(config, config.traits, TENSORS, NEIGHBOURS)


def gguf_settings(config: Config) -> dict[str, float]:
    return {EPSILON: config.eps, "rope.dimension_count": config.rope.width, "use_parallel_residual": False}


def tiny() -> Decoder:
    torch.manual_seed(0)
    return Decoder(
        Config(
            layers=2,
            hidden=64,
            ffn=96,
            heads=4,
            kv_heads=4,
            head_dim=16,
            vocab=320,
            context=512,
            rotary_dim=4,
            qkv_bias=True,
        )
    )
