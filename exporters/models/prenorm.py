"""Decoders of pre-norm layers with rotary positions and gated feed-forward layers, which several families share: sizes,
module, and the tensors of checkpoints in transformers' layout and of GGUF files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from edge.errors import CheckpointError
from exporters.models import ops
from exporters.models.attention import Attend, Rope
from exporters.models.decoders import LanguageModel, Rows
from exporters.models.folding import TIED, Fold, Folding
from exporters.models.layers import Linear, RMSNorm
from exporters.models.source import Source

_NORMS = ("input_layernorm", "post_attention_layernorm")
_CHECKPOINT = {  # what is one matmul here -> what it is in a checkpoint
    "qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o_proj": ("self_attn.o_proj",),
    "gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "down_proj": ("mlp.down_proj",),
    "head_norms.query": ("self_attn.q_norm",),
    "head_norms.key": ("self_attn.k_norm",),
    **{norm: (norm,) for norm in _NORMS},
}


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
    tied: bool = False  # the head is the embedding table

    @property
    def gated(self) -> bool:
        return True

    @property
    def rope(self) -> Rope:
        return Rope(self.head_dim, self.rope_theta, self.rope_scaling)


@dataclass(frozen=True)
class Traits:
    """What families of this shape differ in."""

    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False  # each head's query and key is normed before it is rotated


def sizes(told: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The fields of Config from transformers' names. Raises CheckpointError on what is not computed."""
    if (act := told["hidden_act"]) != "silu":
        raise CheckpointError(f"hidden_act {act!r} is not supported by the {kind} decoder", hint="expected: silu")
    theta, scaling = _rope(told)
    heads = told["num_attention_heads"]
    return {
        "layers": told["num_hidden_layers"],
        "hidden": told["hidden_size"],
        "ffn": told["intermediate_size"],
        "heads": heads,
        "kv_heads": heads if (kv_heads := told["num_key_value_heads"]) is None else kv_heads,
        "head_dim": told["hidden_size"] // heads if (head_dim := told["head_dim"]) is None else head_dim,
        "vocab": told["vocab_size"],
        "context": told["max_position_embeddings"],
        "eps": told["rms_norm_eps"],
        "rope_theta": theta,
        "rope_scaling": scaling,
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
    own: Callable[..., Any], tensors: Collection[str], vocab: int, scaling: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The same from a GGUF file, as `exporters.models.decoders.Family.from_gguf` is given it."""
    hidden, heads = own("embedding_length"), own("attention.head_count")
    return {
        "layers": own("block_count"),
        "hidden": hidden,
        "ffn": own("feed_forward_length"),
        "heads": heads,
        "kv_heads": own("attention.head_count_kv", heads),
        "head_dim": own("attention.key_length", hidden // heads),
        "vocab": vocab,
        "context": own("context_length"),
        "eps": own("attention.layer_norm_rms_epsilon"),
        "rope_theta": own("rope.freq_base", 10000.0),
        "rope_scaling": scaling,
        "tied": "output.weight" not in tensors,
    }


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
    if "mrope_section" in rope:
        raise CheckpointError(
            "rotary positions of several axes (mrope_section) are not supported", hint="another model"
        )
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


class Layer(nn.Module):
    """The pieces of one layer. Queries, keys and values are one product, gate and up another: fewer, larger kernels."""

    def __init__(self, config: Config, traits: Traits) -> None:
        super().__init__()
        c, attended = config, config.heads * config.head_dim
        self.input_layernorm = RMSNorm(c.hidden, c.eps)
        self.qkv_proj = Linear(c.hidden, attended + 2 * c.kv_heads * c.head_dim, bias=traits.qkv_bias)
        self.head_norms = HeadNorms(c) if traits.head_norms else None
        self.o_proj = Linear(attended, c.hidden, bias=traits.o_bias)
        self.post_attention_layernorm = RMSNorm(c.hidden, c.eps)
        self.gate_up_proj = Linear(c.hidden, 2 * c.ffn, bias=traits.mlp_bias)
        self.down_proj = Linear(c.ffn, c.hidden, bias=traits.mlp_bias)


class Decoder(LanguageModel):
    def __init__(self, config: Config, traits: Traits) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(Layer(config, traits) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.eps)
        self.lm_head = Linear(config.hidden, config.vocab, bias=False)

    def forward(self, inputs_embeds: Tensor, attend: Attend, everywhere: bool = False) -> Tensor:
        x = inputs_embeds
        delta: Tensor | None = None
        for index, layer in enumerate(cast("list[Layer]", self.layers)):
            normed, x = (layer.input_layernorm(x), x) if delta is None else layer.input_layernorm.add(x, delta)
            qkv = layer.qkv_proj(normed)
            attended = attend(index, qkv if layer.head_norms is None else layer.head_norms(qkv))
            if index == len(self.layers) - 1 and not everywhere:
                # Only the last row is asked for: nothing behind the last keys and values is computed for the others.
                attended, x = attended[:, -1:], x[:, -1:]
            normed, x = layer.post_attention_layernorm.add(x, layer.o_proj(attended))
            delta = layer.down_proj(ops.current().gated(layer.gate_up_proj(normed), "silu"))
        return self.lm_head(self.norm(x if delta is None else x + delta))

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


def keys(config: Config, traits: Traits, prefix: str) -> dict[str, Source]:
    """Each parameter's tensors in a checkpoint in transformers' layout."""
    embed = f"{prefix}embed_tokens.weight"
    found = {"embed_tokens.weight": Source((embed,))}
    for i in range(config.layers):
        for piece, kind in _parameters(traits):
            found[f"layers.{i}.{piece}.{kind}"] = Source(
                tuple(f"{prefix}layers.{i}.{n}.{kind}" for n in _CHECKPOINT[piece])
            )
    found["norm.weight"] = Source((f"{prefix}norm.weight",))
    found["lm_head.weight"] = Source((embed if config.tied else "lm_head.weight",))
    return found


def gguf_tensors(
    config: Config, traits: Traits, layer: Mapping[str, tuple[str, ...]], neighbours: bool
) -> dict[str, tuple[Rows, ...]]:
    """As `exporters.models.decoders.Family.gguf_tensors` has them.

    layer: what is one matmul or norm here -> its names in a layer of the file.
    neighbours: whether llama.cpp rotates neighbouring rows of a head for this architecture, and not its halves.
    """
    c, queries, keys = config, config.heads * config.head_dim, config.kv_heads * config.head_dim
    found: dict[str, tuple[Rows, ...]] = {
        "embed_tokens.weight": (Rows("token_embd.weight", c.vocab),),
        "norm.weight": (Rows("output_norm.weight", c.hidden),),
    }
    if not c.tied:
        found["lm_head.weight"] = (Rows("output.weight", c.vocab),)
    turned = (c.heads, c.kv_heads) if neighbours else (0, 0)
    rows = {
        "qkv_proj": ((queries, turned[0]), (keys, turned[1]), (keys, 0)),
        "o_proj": ((c.hidden, 0),),
        "gate_up_proj": ((c.ffn, 0), (c.ffn, 0)),
        "down_proj": ((c.hidden, 0),),
        "head_norms.query": ((c.head_dim, 0),),
        "head_norms.key": ((c.head_dim, 0),),
        **dict.fromkeys(_NORMS, ((c.hidden, 0),)),
    }
    norms_first = sorted(_parameters(traits), key=lambda parameter: parameter[0] not in _NORMS)
    for i in range(c.layers):
        for piece, kind in norms_first:
            found[f"layers.{i}.{piece}.{kind}"] = tuple(
                Rows(f"blk.{i}.{name}.{kind}", *shape) for name, shape in zip(layer[piece], rows[piece], strict=True)
            )
    return found


def refuse_in_gguf(config: Config, traits: Traits, architecture: str) -> None:
    """For architectures of which llama.cpp knows no factors of the rotation, and no bias of a normed head. Raises
    CheckpointError."""
    lacks = {"rope_scaling": config.rope_scaling is not None, "attention_bias": traits.head_norms and traits.qkv_bias}
    if found := [name for name, there in lacks.items() if there]:
        raise CheckpointError(
            f"llama.cpp's {architecture!r} has no {' and no '.join(found)}, which this decoder has",
            hint="another --format",
        )


def _parameters(traits: Traits) -> list[tuple[str, str]]:
    """Of a layer: a piece, and "weight" or "bias"."""
    biased = {
        "qkv_proj": traits.qkv_bias,
        "o_proj": traits.o_bias,
        "gate_up_proj": traits.mlp_bias,
        "down_proj": traits.mlp_bias,
    }
    found = [(piece, kind) for piece, bias in biased.items() for kind in ("weight", "bias")[: 1 + bias]]
    norms = (*_NORMS, *(("head_norms.query", "head_norms.key") if traits.head_norms else ()))
    return found + [(norm, "weight") for norm in norms]
