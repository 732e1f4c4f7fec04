"""Decoders of pre-norm layers with rotary positions and gated feed-forward layers, which several families share: sizes
and module. Their tensors are in `exporters.models.prenorm_tensors`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from edge.errors import CheckpointError
from exporters.models import ops, rope_config
from exporters.models.attention import Attend, Rope
from exporters.models.decoders import LanguageModel
from exporters.models.folding import TIED, Fold, Folding
from exporters.models.layers import LayerNorm, Linear, RMSNorm


@dataclass(frozen=True)
class Config:
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    rotary_dim: int | None = None  # features of a head that rotate; None: all
    tied: bool = False  # the head is the embedding table

    @property
    def gated(self) -> bool:
        return True

    @property
    def rope(self) -> Rope:
        return Rope(self.head_dim, self.rope_theta, self.rope_scaling, self.rotary_dim or 0)


@dataclass(frozen=True)
class Traits:
    """What families of this shape differ in."""

    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False  # each head's query and key is normed before it is rotated
    layer_norm: bool = False  # norms take off the mean and have a bias, where others are RMS norms
    activation: str = "silu"  # of the gate: one of `exporters.models.ops.ACTIVATIONS`
    scaled: bool = False  # what goes in is multiplied by the square root of its width
    post_norms: bool = False  # what attention and feed-forward layers give is normed, too, before it is added
    attention_cap: float = 0.0  # soft cap of attention's scores, 0: none
    logits_cap: float = 0.0  # of the logits


def sizes(
    told: Mapping[str, Any],
    kind: str,
    *,
    activations: Collection[str] = ("silu",),
    eps: str = "rms_norm_eps",
    partial: float | None = None,
) -> dict[str, Any]:
    """The fields of Config from transformers' names. Raises CheckpointError on what is not computed.

    activations: those that the family computes.
    eps: the name of that of the norms.
    partial: as `exporters.models.rope_config.read` takes it.
    """
    if (act := told["hidden_act"]) not in activations:
        raise CheckpointError(
            f"hidden_act {act!r} is not supported by the {kind} decoder", hint="expected: " + ", ".join(activations)
        )
    rope = rope_config.read(told, partial)
    heads = told["num_attention_heads"]
    head_dim = told["hidden_size"] // heads if (head_dim := told["head_dim"]) is None else head_dim
    return {
        "layers": told["num_hidden_layers"],
        "hidden": told["hidden_size"],
        "ffn": told["intermediate_size"],
        "heads": heads,
        "kv_heads": heads if (kv_heads := told["num_key_value_heads"]) is None else kv_heads,
        "head_dim": head_dim,
        "vocab": told["vocab_size"],
        "context": told["max_position_embeddings"],
        "eps": told[eps],
        "rope_theta": rope.theta,
        "rope_scaling": rope.scaling,
        "rotary_dim": rope_config.rotary_dim(head_dim, rope.partial),
        "tied": told["tie_word_embeddings"],
    }


def refuse_windows(told: Mapping[str, Any]) -> None:
    """Qwen's own way to say which layers see a window of positions only. Raises CheckpointError where one does."""
    layers, first = told["num_hidden_layers"], told["max_window_layers"]
    derived = ["full_attention"] * layers
    if told["use_sliding_window"] and told["sliding_window"] is not None:
        derived = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    if others := sorted(set(told["layer_types"] or derived) - {"full_attention"}):
        raise CheckpointError(
            f"layers of the decoder have {', '.join(map(str, others))}, which is not supported (use_sliding_window "
            f"{told['use_sliding_window']!r}, sliding_window {told['sliding_window']!r})",
            hint="a checkpoint whose layers all have full attention: use_sliding_window false",
        )


def gguf_sizes(
    own: Callable[..., Any],
    tensors: Collection[str],
    vocab: int,
    scaling: Mapping[str, Any] | None,
    *,
    eps: str = "attention.layer_norm_rms_epsilon",
    partial: bool = False,
) -> dict[str, Any]:
    """The same from a GGUF file, as `exporters.models.decoders.Family.from_gguf` is given it.

    eps: what the file calls that of the norms.
    partial: whether llama.cpp rotates a part of each head where the file says so.
    """
    hidden, heads = own("embedding_length"), own("attention.head_count")
    head_dim = own("attention.key_length", hidden // heads)
    turned = own("rope.dimension_count", head_dim) if partial else head_dim
    return {
        "layers": own("block_count"),
        "hidden": hidden,
        "ffn": own("feed_forward_length"),
        "heads": heads,
        "kv_heads": own("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab": vocab,
        "context": own("context_length"),
        "eps": own(eps),
        "rope_theta": own("rope.freq_base", 10000.0),
        "rope_scaling": scaling,
        "rotary_dim": None if turned == head_dim else turned,
        "tied": "output.weight" not in tensors,
    }


class HeadNorms(nn.Module):
    """Norms of each head's query and key (arXiv 2302.05442), before they are rotated."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.heads, self.kv_heads = c.heads, c.kv_heads
        self.query = RMSNorm(c.head_dim, c.eps)
        self.key = RMSNorm(c.head_dim, c.eps)

    def forward(self, qkv: Tensor) -> Tensor:
        weights = self.query.weight, self.key.weight
        return ops.current().head_norms(qkv, *weights, self.heads, self.kv_heads, self.query.eps)


def _norm(config: Config, traits: Traits) -> RMSNorm | LayerNorm:
    return (LayerNorm if traits.layer_norm else RMSNorm)(config.hidden, config.eps)


class Layer(nn.Module):
    """The pieces of one layer. Queries, keys and values are one product, gate and up another: fewer, larger kernels."""

    def __init__(self, config: Config, traits: Traits) -> None:
        super().__init__()
        c, attended = config, config.heads * config.head_dim
        self.input_layernorm = _norm(c, traits)
        self.qkv_proj = Linear(c.hidden, attended + 2 * c.kv_heads * c.head_dim, bias=traits.qkv_bias)
        self.head_norms = HeadNorms(c) if traits.head_norms else None
        self.o_proj = Linear(attended, c.hidden, bias=traits.o_bias)
        self.attention_norm = _norm(c, traits) if traits.post_norms else None
        self.post_attention_layernorm = _norm(c, traits)
        self.gate_up_proj = Linear(c.hidden, 2 * c.ffn, bias=traits.mlp_bias)
        self.down_proj = Linear(c.ffn, c.hidden, bias=traits.mlp_bias)
        self.feed_forward_norm = _norm(c, traits) if traits.post_norms else None


class Decoder(LanguageModel):
    def __init__(self, config: Config, traits: Traits) -> None:
        super().__init__(config)
        self.traits = traits
        self.layers = nn.ModuleList(Layer(config, traits) for _ in range(config.layers))
        self.norm = _norm(config, traits)
        self.lm_head = Linear(config.hidden, config.vocab, bias=False)

    def forward(self, inputs_embeds: Tensor, attend: Attend, everywhere: bool = False) -> Tensor:
        x = inputs_embeds * self.config.hidden**0.5 if self.traits.scaled else inputs_embeds
        delta: Tensor | None = None
        for index, layer in enumerate(cast("list[Layer]", self.layers)):
            normed, x = (layer.input_layernorm(x), x) if delta is None else layer.input_layernorm.add(x, delta)
            qkv = layer.qkv_proj(normed)
            qkv = qkv if layer.head_norms is None else layer.head_norms(qkv)
            attended = attend(index, qkv, self.traits.attention_cap)
            if index == len(self.layers) - 1 and not everywhere:
                # Only the last row is asked for: nothing behind the last keys and values is computed for the others.
                attended, x = attended[:, -1:], x[:, -1:]
            seen = layer.o_proj(attended)
            seen = seen if layer.attention_norm is None else layer.attention_norm(seen)
            normed, x = layer.post_attention_layernorm.add(x, seen)
            delta = layer.down_proj(ops.current().gated(layer.gate_up_proj(normed), self.traits.activation))
            delta = delta if layer.feed_forward_norm is None else layer.feed_forward_norm(delta)
        logits = self.lm_head(self.norm(x if delta is None else x + delta))
        return ops.current().soft_cap(logits, cap) if (cap := self.traits.logits_cap) else logits

    def folding(self) -> Folding:
        c, folds = cast("Config", self.config), []
        first, values = (c.heads + c.kv_heads) * c.head_dim, c.kv_heads * c.head_dim
        for at in (f"layers.{index}" for index in range(c.layers)):
            folds += [
                Fold(f"{at}.input_layernorm", (f"{at}.qkv_proj",)),
                Fold(f"{at}.qkv_proj", (f"{at}.o_proj",), first, values, c.head_dim, c.heads // c.kv_heads),
                Fold(f"{at}.post_attention_layernorm", (f"{at}.gate_up_proj",)),
                Fold(f"{at}.gate_up_proj", (f"{at}.down_proj",), c.ffn, c.ffn),  # of the half that is not activated
            ]
        if c.tied:
            return Folding(tuple(folds), {"lm_head": TIED})
        return Folding((*folds, Fold("norm", ("lm_head",))))
