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


def from_config(config: Mapping[str, Any]) -> DecoderConfig:
    """From transformers' Llama names in config.json."""
    if (act := config.get("hidden_act", "silu")) != "silu":
        raise CheckpointError(f"hidden_act {act!r} is not supported by the llama decoder", hint="expected: silu")
    rope = config.get("rope_parameters") or {}
    heads = config["num_attention_heads"]
    scaling = config.get("rope_scaling") or ({} if rope.get("rope_type", "default") == "default" else rope)
    return DecoderConfig(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        ffn=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab=config["vocab_size"],
        context=config.get("max_position_embeddings", 2048),
        eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=float(config.get("rope_theta") or rope.get("rope_theta", 10000.0)),
        rope_scaling=scaling or None,
        attention_bias=config.get("attention_bias", False),
        mlp_bias=config.get("mlp_bias", False),
        tied=config.get("tie_word_embeddings", False),
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
