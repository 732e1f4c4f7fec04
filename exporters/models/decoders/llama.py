"""Llama-shaped language models (arXiv 2302.13971): MobileLLaMA, Vicuna, TinyLlama and their kin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from edge.errors import CheckpointError
from exporters.models import ops
from exporters.models.attention import Attend
from exporters.models.decoders import DecoderConfig, LanguageModel
from exporters.models.layers import Linear, RMSNorm

KIND = "llama"
GATED = True  # the feed-forward layers have a gate beside the up projection
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


def from_config(config: Mapping[str, Any]) -> DecoderConfig:
    """From transformers' Llama names in config.json; what it leaves out is as in transformers' LlamaConfig."""
    told = {**DEFAULTS, **config}
    if (act := told["hidden_act"]) != "silu":
        raise CheckpointError(f"hidden_act {act!r} is not supported by the llama decoder", hint="expected: silu")
    theta, scaling = _rope(told)
    heads = told["num_attention_heads"]
    return DecoderConfig(
        layers=told["num_hidden_layers"],
        hidden=told["hidden_size"],
        ffn=told["intermediate_size"],
        heads=heads,
        kv_heads=heads if (kv_heads := told["num_key_value_heads"]) is None else kv_heads,
        head_dim=told["hidden_size"] // heads if (head_dim := told["head_dim"]) is None else head_dim,
        vocab=told["vocab_size"],
        context=told["max_position_embeddings"],
        eps=told["rms_norm_eps"],
        rope_theta=theta,
        rope_scaling=scaling,
        attention_bias=told["attention_bias"],
        mlp_bias=told["mlp_bias"],
        tied=told["tie_word_embeddings"],
    )


def left_out(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that a config.json does not tell, as `from_config` has them."""
    return {name: size for name, size in DEFAULTS.items() if type(size) is int and name not in config}


def _rope(told: Mapping[str, Any]) -> tuple[float, Mapping[str, Any] | None]:
    """theta and scaling, which transformers 5 writes as `rope_parameters`, and those before it in two fields."""
    rope = dict(told["rope_scaling"] or told["rope_parameters"] or {})
    if told["rope_scaling"] and told["rope_parameters"]:
        raise CheckpointError("config.json has both rope_scaling and rope_parameters", hint="keep the right one")
    _agree(told, rope, "rope_theta")
    theta = rope.pop("rope_theta", None) or told["rope_theta"] or 10000.0
    for partial in (told["partial_rotary_factor"], rope.pop("partial_rotary_factor", None)):
        if partial not in (None, 1):
            raise CheckpointError(f"partial_rotary_factor {partial!r} is not supported", hint="1: whole heads rotate")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "llama3":
        _agree(told, rope, "original_max_position_embeddings")
        original = told["original_max_position_embeddings"] or told["max_position_embeddings"]
        rope = {"original_max_position_embeddings": original, **rope}
    return float(theta), None if kind == "default" else rope


def _agree(told: Mapping[str, Any], rope: Mapping[str, Any], name: str) -> None:
    """Which of the two places counts depends on the version of transformers."""
    if None not in (told[name], rope.get(name)) and told[name] != rope[name]:
        raise CheckpointError(
            f"config.json has {name} {told[name]!r}, its rope parameters have {rope[name]!r}", hint="keep the right one"
        )


class Layer(nn.Module):
    """The pieces of one layer. Queries, keys and values are one product, gate and up another: fewer, larger kernels."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        c, attended = config, config.heads * config.head_dim
        self.input_layernorm = RMSNorm(c.hidden, c.eps)
        self.qkv_proj = Linear(c.hidden, attended + 2 * c.kv_heads * c.head_dim, bias=c.attention_bias)
        self.o_proj = Linear(attended, c.hidden, bias=c.attention_bias)
        self.post_attention_layernorm = RMSNorm(c.hidden, c.eps)
        self.gate_up_proj = Linear(c.hidden, 2 * c.ffn, bias=c.mlp_bias)
        self.down_proj = Linear(c.ffn, c.hidden, bias=c.mlp_bias)


class Decoder(LanguageModel):
    """`inputs_embeds` `[B, S, hidden]` -> logits of the last position `[B, 1, vocab]`, or of all, float32."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.eps)
        self.lm_head = Linear(config.hidden, config.vocab, bias=False)

    def forward(self, inputs_embeds: Tensor, attend: Attend, everywhere: bool = False) -> Tensor:
        x = inputs_embeds
        delta: Tensor | None = None
        for index, layer in enumerate(cast("list[Layer]", self.layers)):
            normed, x = (layer.input_layernorm(x), x) if delta is None else layer.input_layernorm.add(x, delta)
            attended = attend(index, layer.qkv_proj(normed))
            if index == len(self.layers) - 1 and not everywhere:
                # Only the last row is asked for: nothing behind the last keys and values is computed for the others.
                attended, x = attended[:, -1:], x[:, -1:]
            normed, x = layer.post_attention_layernorm.add(x, layer.o_proj(attended))
            delta = layer.down_proj(ops.current().gated(layer.gate_up_proj(normed), "silu"))
        return self.lm_head(self.norm(x if delta is None else x + delta))


def keys(config: DecoderConfig, prefix: str = "model.") -> dict[str, tuple[str, ...]]:
    """Each parameter's keys in a checkpoint in transformers' Llama layout."""
    embed = f"{prefix}embed_tokens.weight"
    found: dict[str, tuple[str, ...]] = {
        "embed_tokens.weight": (embed,),
        "norm.weight": (f"{prefix}norm.weight",),
        "lm_head.weight": (embed,) if config.tied else ("lm_head.weight",),
    }
    kinds = ("weight", "bias")
    for index in range(config.layers):
        own, theirs = f"layers.{index}.", f"{prefix}layers.{index}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{own}{norm}.weight"] = (f"{theirs}{norm}.weight",)
        for kind in kinds[: 1 + config.attention_bias]:
            found[f"{own}qkv_proj.{kind}"] = tuple(f"{theirs}self_attn.{p}_proj.{kind}" for p in "qkv")
            found[f"{own}o_proj.{kind}"] = (f"{theirs}self_attn.o_proj.{kind}",)
        for kind in kinds[: 1 + config.mlp_bias]:
            found[f"{own}gate_up_proj.{kind}"] = tuple(f"{theirs}mlp.{p}_proj.{kind}" for p in ("gate", "up"))
            found[f"{own}down_proj.{kind}"] = (f"{theirs}mlp.down_proj.{kind}",)
    return found


def tiny() -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig(layers=2, hidden=64, ffn=96, heads=4, kv_heads=2, head_dim=16, vocab=320, context=512))
