"""Gemma 2 (arXiv 2408.00118): Gemma 1's layers, normed before and behind; attention's scores and the logits have a soft
cap, and every second layer sees a window of positions only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from edge.errors import CheckpointError
from exporters.models import prenorm, prenorm_tensors, rope_config
from exporters.models.decoders import Rows
from exporters.models.source import OnePlus, ScaleRows, Source

KIND = "gemma2"
MODEL_TYPES = ("gemma2",)
ARCHITECTURE = "gemma2"
NEIGHBOURS = False  # llama.cpp rotates the halves of a head, as checkpoints have them
CHECKPOINT = {  # what is called otherwise in a checkpoint
    "attention_norm": ("post_attention_layernorm",),
    "post_attention_layernorm": ("pre_feedforward_layernorm",),
    "feed_forward_norm": ("post_feedforward_layernorm",),
}
TENSORS = {  # of a layer, in a GGUF file
    "input_layernorm": ("attn_norm",),
    "qkv_proj": ("attn_q", "attn_k", "attn_v"),
    "o_proj": ("attn_output",),
    "attention_norm": ("post_attention_norm",),
    "post_attention_layernorm": ("ffn_norm",),
    "gate_up_proj": ("ffn_gate", "ffn_up"),
    "down_proj": ("ffn_down",),
    "feed_forward_norm": ("post_ffw_norm",),
}
LAYERS_27B = 46  # by which llama.cpp knows the model whose scores it scales by another number than a head's width
WINDOW = 4096  # what llama.cpp takes where a file says none
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
DEFAULTS: Mapping[str, Any] = {  # transformers' Gemma2Config
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
    "sliding_window": WINDOW,
    "layer_types": None,  # a window in every second one
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
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
    query_scalar: float = 0.0  # scores are divided by its square root; 0: by that of a head's width
    window: int = WINDOW
    attention_cap: float = 50.0
    logits_cap: float = 30.0

    @property
    def traits(self) -> prenorm.Traits:
        bias = self.attention_bias
        return prenorm.Traits(
            qkv_bias=bias,
            o_bias=bias,
            activation="gelu_tanh",
            scaled=True,
            post_norms=True,
            attention_cap=self.attention_cap,
            logits_cap=self.logits_cap,
        )


def from_config(config: Mapping[str, Any]) -> Config:
    """From transformers' Gemma2 names in config.json; what it leaves out is as in transformers' Gemma2Config. The
    context ends with the window, up to which every layer sees all positions."""
    told = {**DEFAULTS, **config}
    told["hidden_act"] = told["hidden_activation"]
    if told["use_bidirectional_attention"]:
        raise CheckpointError("use_bidirectional_attention is true, which is not supported", hint="a causal decoder")
    if others := set(told["layer_types"] or ()) - {"full_attention", "sliding_attention"}:
        raise CheckpointError(
            f"layers of the decoder have {', '.join(sorted(map(str, others)))}, which is not supported",
            hint="full_attention and sliding_attention",
        )
    if (scalar := told["query_pre_attn_scalar"]) <= 0:
        raise CheckpointError(f"config.json has query_pre_attn_scalar {scalar!r}", hint="a number above 0")
    sizes = prenorm.sizes(told, KIND, activations=("gelu_pytorch_tanh",))
    context = rope_config.context(told)
    return Config(
        **sizes | {"context": context},
        attention_bias=told["attention_bias"],
        query_scalar=0.0 if scalar == sizes["head_dim"] else float(scalar),
        window=told["sliding_window"] or context,
        attention_cap=told["attn_logit_softcapping"] or 0.0,
        logits_cap=told["final_logit_softcapping"] or 0.0,
    )


def left_out(config: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that a config.json does not tell, as `from_config` has them."""
    return {name: size for name, size in DEFAULTS.items() if type(size) is int and name not in config}


def from_gguf(
    own: Callable[..., Any], tensors: Collection[str], vocab: int, scaling: Mapping[str, Any] | None
) -> Config:
    """Raises CheckpointError on the model whose scores llama.cpp scales in a way of its own."""
    sizes = prenorm.gguf_sizes(own, tensors, vocab, scaling)
    _refuse_27b(sizes["layers"])
    window = own("attention.sliding_window", WINDOW)
    caps = (own(name, DEFAULTS[name]) for name in CAPS)
    attention_cap, logits_cap = caps
    sizes["context"] = min(sizes["context"], window)
    return Config(**sizes, window=window, attention_cap=attention_cap, logits_cap=logits_cap)


class Decoder(prenorm.Decoder):
    """`inputs_embeds` `[B, S, hidden]` -> logits of the last position `[B, 1, vocab]`, or of all, float32."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.traits)


def keys(config: Config, prefix: str = "model.") -> dict[str, Source]:
    """The queries take up what scores are divided by beyond the root of a head's width."""
    qkv = None
    if config.query_scalar:
        qkv = ScaleRows(config.heads * config.head_dim, (config.head_dim / config.query_scalar) ** 0.5)
    return prenorm_tensors.keys(config, config.traits, prefix, joined=CHECKPOINT, norm=OnePlus(), qkv=qkv)


def gguf_tensors(config: Config) -> dict[str, tuple[Rows, ...]]:
    prenorm_tensors.refuse_in_gguf(config, ARCHITECTURE, config.attention_bias)
    _refuse_27b(config.layers)
    return prenorm_tensors.gguf_tensors(config, config.traits, TENSORS, NEIGHBOURS)


def gguf_settings(config: Config) -> dict[str, float]:
    if not config.attention_cap or not config.logits_cap:
        raise CheckpointError(
            f"llama.cpp's {ARCHITECTURE!r} has soft caps, and this decoder lacks one", hint="another --format"
        )
    caps = dict(zip(CAPS, (config.attention_cap, config.logits_cap), strict=True))
    return {"attention.layer_norm_rms_epsilon": config.eps, "attention.sliding_window": config.window, **caps}


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
            tied=True,
        )
    )
    decoder.lm_head.weight.data.copy_(decoder.embed_tokens.weight.data)
    return decoder


def _refuse_27b(layers: int) -> None:
    if layers == LAYERS_27B:
        raise CheckpointError(
            f"llama.cpp scales the attention of a {ARCHITECTURE!r} of {layers} layers by a number of its own",
            hint="another --format",
        )
