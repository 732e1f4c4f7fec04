"""The tensors of `exporters.models.prenorm`, in checkpoints of transformers' layout and in GGUF files."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from edge.errors import CheckpointError
from exporters.models.decoders import Rows
from exporters.models.prenorm import Config, Traits
from exporters.models.source import Source, Transform

_NORMS = ("input_layernorm", "post_attention_layernorm")
_POST_NORMS = ("attention_norm", "feed_forward_norm")
_CHECKPOINT = {  # what is one matmul here -> what it is in a checkpoint
    "qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o_proj": ("self_attn.o_proj",),
    "gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "down_proj": ("mlp.down_proj",),
    "head_norms.query": ("self_attn.q_norm",),
    "head_norms.key": ("self_attn.k_norm",),
    **{norm: (norm,) for norm in _NORMS},
}
_NOTHING: Mapping[str, tuple[str, ...]] = MappingProxyType({})


def keys(
    config: Config,
    traits: Traits,
    prefix: str,
    *,
    joined: Mapping[str, tuple[str, ...]] = _NOTHING,
    norm: Transform | None = None,
    qkv: Transform | None = None,
) -> dict[str, Source]:
    """Each parameter's tensors in a checkpoint in transformers' layout.

    joined: what a family's checkpoints call otherwise, or keep as one tensor.
    norm: what makes a gain of a norm's tensor.
    qkv: what is done with the weight of queries, keys and values.
    """
    embed = f"{prefix}embed_tokens.weight"
    found, names = {"embed_tokens.weight": Source((embed,))}, {**_CHECKPOINT, **joined}
    done = {**dict.fromkeys((*_NORMS, *_POST_NORMS), norm), "qkv_proj": qkv}
    for i in range(config.layers):
        for piece, kind in _parameters(traits):
            own = tuple(f"{prefix}layers.{i}.{name}.{kind}" for name in names[piece])
            found[f"layers.{i}.{piece}.{kind}"] = Source(own, done.get(piece))
    for kind in _kinds(traits.layer_norm):
        found[f"norm.{kind}"] = Source((f"{prefix}norm.{kind}",), norm)
    found["lm_head.weight"] = Source((embed if config.tied else "lm_head.weight",))
    return found


def gguf_tensors(
    config: Config, traits: Traits, layer: Mapping[str, tuple[str, ...]], neighbours: bool
) -> dict[str, tuple[Rows, ...]]:
    """As `exporters.models.decoders.Family.gguf_tensors` has them.

    layer: what is one matmul or norm here -> its names in a layer of the file, one where it is one there, too.
    neighbours: whether llama.cpp rotates neighbouring rows of a head for this architecture, and not its halves.
    """
    c, queries, keys = config, config.heads * config.head_dim, config.kv_heads * config.head_dim
    found: dict[str, tuple[Rows, ...]] = {
        "embed_tokens.weight": (Rows("token_embd.weight", c.vocab),),
        **{f"norm.{kind}": (Rows(f"output_norm.{kind}", c.hidden),) for kind in _kinds(traits.layer_norm)},
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
        **dict.fromkeys((*_NORMS, *_POST_NORMS), ((c.hidden, 0),)),
    }
    norms_first = sorted(_parameters(traits), key=lambda parameter: parameter[0] not in _NORMS)
    for i in range(c.layers):
        for piece, kind in norms_first:
            shapes = rows[piece] if len(layer[piece]) > 1 else ((sum(count for count, _ in rows[piece]), 0),)
            found[f"layers.{i}.{piece}.{kind}"] = tuple(
                Rows(f"blk.{i}.{name}.{kind}", *shape) for name, shape in zip(layer[piece], shapes, strict=True)
            )
    return found


def refuse_in_gguf(config: Config, architecture: str, attention_bias: bool = False) -> None:
    """For architectures of which llama.cpp knows no factors of the rotation. Raises CheckpointError.

    attention_bias: whether the decoder has a bias that the architecture has not.
    """
    lacks = {"rope_scaling": config.rope_scaling is not None, "attention_bias": attention_bias}
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
    found = [(piece, kind) for piece, bias in biased.items() for kind in _kinds(bias)]
    heads = ("head_norms.query", "head_norms.key") if traits.head_norms else ()
    norms = (*_NORMS, *_POST_NORMS) if traits.post_norms else _NORMS
    found += [(norm, kind) for norm in norms for kind in _kinds(traits.layer_norm)]
    return found + [(norm, "weight") for norm in heads]


def _kinds(bias: bool) -> tuple[str, ...]:
    return ("weight", "bias")[: 1 + bias]
