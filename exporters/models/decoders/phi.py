"""Phi-1, Phi-1.5 and Phi-2 (arXiv 2309.05463): attention and MLP read the same norm and are added together, every layer
has a bias, and a part of each head is rotated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from edge.errors import CheckpointError
from exporters.models import prenorm
from exporters.models.attention import Attend
from exporters.models.decoders import LanguageModel, Rows
from exporters.models.folding import ACTIVATION, TIED, Fold, Folding
from exporters.models.layers import Activation, LayerNorm, Linear
from exporters.models.source import Source

KIND = "phi"
MODEL_TYPES = ("phi", "bunny-phi")
ARCHITECTURE = "phi2"
EPSILON = "attention.layer_norm_epsilon"
PARTIAL = 0.5  # of each head is rotated, where a config does not say
ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")  # two names of one
LAYER = {  # piece -> what makes it in a checkpoint, and in a GGUF file
    "input_layernorm": (("input_layernorm",), ("attn_norm",)),
    "qkv_proj": (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("attn_q", "attn_k", "attn_v")),
    "o_proj": (("self_attn.dense",), ("attn_output",)),
    "fc1": (("mlp.fc1",), ("ffn_up",)),
    "fc2": (("mlp.fc2",), ("ffn_down",)),
}
KINDS = ("weight", "bias")
DEFAULTS: Mapping[str, Any] = {  # transformers' PhiConfig
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": None,  # as many as heads
    "head_dim": None,  # hidden_size / num_attention_heads
    "hidden_act": "gelu_new",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "qk_layernorm": False,
    "rope_theta": None,  # 10000
    "rope_scaling": None,
    "rope_parameters": None,
    "partial_rotary_factor": None,  # PARTIAL
    "original_max_position_embeddings": None,
}


@dataclass(frozen=True)
class Config(prenorm.Config):
    @property
    def gated(self) -> bool:
        return False


def from_config(config: Mapping[str, Any]) -> Config:
    """From transformers' Phi names in config.json; what it leaves out is as in transformers' PhiConfig."""
    told = {**DEFAULTS, **config}
    if told["qk_layernorm"]:
        raise CheckpointError("qk_layernorm is true, which the phi decoder does not compute", hint="Phi-1, 1.5 or 2")
    return Config(**prenorm.sizes(told, KIND, activations=ACTIVATIONS, eps="layer_norm_eps", partial=PARTIAL))


def left_out(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that a config.json does not tell, as `from_config` has them."""
    return {name: size for name, size in DEFAULTS.items() if type(size) is int and name not in config}


def from_gguf(
    own: Callable[..., Any], tensors: Collection[str], vocab: int, scaling: Mapping[str, Any] | None
) -> Config:
    return Config(**prenorm.gguf_sizes(own, tensors, vocab, scaling, eps=EPSILON, partial=True))


class Layer(nn.Module):
    """The pieces of one layer. Queries, keys and values are one product."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        attended = c.heads * c.head_dim
        self.input_layernorm = LayerNorm(c.hidden, c.eps)
        self.qkv_proj = Linear(c.hidden, attended + 2 * c.kv_heads * c.head_dim)
        self.o_proj = Linear(attended, c.hidden)
        self.fc1, self.activation, self.fc2 = Linear(c.hidden, c.ffn), Activation("gelu_tanh"), Linear(c.ffn, c.hidden)


class Decoder(LanguageModel):
    """`inputs_embeds` `[B, S, hidden]` -> logits of the last position `[B, 1, vocab]`, or of all, float32."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = LayerNorm(config.hidden, config.eps)
        self.lm_head = Linear(config.hidden, config.vocab)

    def forward(self, inputs_embeds: Tensor, attend: Attend, everywhere: bool = False) -> Tensor:
        x = inputs_embeds
        delta: Tensor | None = None
        for index, layer in enumerate(cast("list[Layer]", self.layers)):
            normed, x = (layer.input_layernorm(x), x) if delta is None else layer.input_layernorm.add(x, delta)
            attended = attend(index, layer.qkv_proj(normed))
            if index == len(self.layers) - 1 and not everywhere:
                # Only the last row is asked for: nothing behind the last keys and values is computed for the others.
                attended, normed, x = attended[:, -1:], normed[:, -1:], x[:, -1:]
            delta = layer.o_proj(attended) + layer.fc2(layer.activation(layer.fc1(normed)))
        return self.lm_head(self.norm(x if delta is None else x + delta))

    def folding(self) -> Folding:
        c, folds, unfolded = cast("Config", self.config), [], {}
        first, values = (c.heads + c.kv_heads) * c.head_dim, c.kv_heads * c.head_dim
        for at in (f"layers.{index}" for index in range(c.layers)):
            folds += [
                Fold(f"{at}.input_layernorm", (f"{at}.qkv_proj", f"{at}.fc1"), shifts=True),
                # The weights of attention have the sum one: it passes constants on.
                Fold(
                    f"{at}.qkv_proj", (f"{at}.o_proj",), first, values, c.head_dim, c.heads // c.kv_heads, shifts=True
                ),
            ]
            unfolded[f"{at}.fc2"] = ACTIVATION
        if c.tied:
            return Folding(tuple(folds), {**unfolded, "lm_head": TIED})
        return Folding((*folds, Fold("norm", ("lm_head",), shifts=True)), unfolded)


def keys(config: Config, prefix: str = "model.") -> dict[str, Source]:
    embed = f"{prefix}embed_tokens.weight"
    found = {"embed_tokens.weight": Source((embed,))}
    for i in range(config.layers):
        for piece, (names, _) in LAYER.items():
            for kind in KINDS:
                found[f"layers.{i}.{piece}.{kind}"] = Source(tuple(f"{prefix}layers.{i}.{n}.{kind}" for n in names))
    found |= {f"norm.{kind}": Source((f"{prefix}final_layernorm.{kind}",)) for kind in KINDS}
    return found | {
        "lm_head.weight": Source((embed if config.tied else "lm_head.weight",)),
        "lm_head.bias": Source(("lm_head.bias",)),
    }


def gguf_tensors(config: Config) -> dict[str, tuple[Rows, ...]]:
    if config.rope_scaling is not None:
        raise CheckpointError(
            f"llama.cpp's {ARCHITECTURE!r} has no rope_scaling, which this decoder has", hint="another --format"
        )
    c, kept = config, config.kv_heads * config.head_dim
    found: dict[str, tuple[Rows, ...]] = {"embed_tokens.weight": (Rows("token_embd.weight", c.vocab),)}
    found |= {f"norm.{kind}": (Rows(f"output_norm.{kind}", c.hidden),) for kind in KINDS}
    if not c.tied:
        found["lm_head.weight"] = (Rows("output.weight", c.vocab),)
    found["lm_head.bias"] = (Rows("output.bias", c.vocab),)
    rows = {
        **dict.fromkeys(("input_layernorm", "o_proj", "fc2"), (c.hidden,)),
        "qkv_proj": (c.heads * c.head_dim, kept, kept),
        "fc1": (c.ffn,),
    }
    for i in range(c.layers):
        for piece, (_, names) in LAYER.items():
            for kind in KINDS:
                found[f"layers.{i}.{piece}.{kind}"] = tuple(
                    Rows(f"blk.{i}.{name}.{kind}", count) for name, count in zip(names, rows[piece], strict=True)
                )
    return found


def gguf_settings(config: Config) -> dict[str, float]:
    return {EPSILON: config.eps, "rope.dimension_count": config.rope.width}


def tiny() -> Decoder:
    torch.manual_seed(0)
    return Decoder(
        Config(layers=2, hidden=64, ffn=96, heads=4, kv_heads=4, head_dim=16, vocab=320, context=512, rotary_dim=8)
    )
