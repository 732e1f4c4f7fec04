"""A Llama-shaped decoder under llama.cpp's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import gguf
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from exporters.gguf import tensor_types
from exporters.gguf.entries import Entry
from exporters.models.attention import Rope
from exporters.models.decoders import DecoderConfig
from exporters.models.decoders.llama import Decoder

FACTORS = "rope_freqs.weight"
TABLES = ("token_embd.weight", "output.weight")  # where an error is in every token


def describe(writer: gguf.GGUFWriter, config: DecoderConfig) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.eps)
    writer.add_vocab_size(config.vocab)


class Rows(NamedTuple):
    """A tensor of the file, and how many rows of a module's parameter it is."""

    name: str
    rows: int
    heads: int = 0  # above 0: the rows are those of so many rotary heads


def names(c: DecoderConfig) -> dict[str, tuple[Rows, ...]]:
    """Each parameter of the module -> what it is in the file, from its first row on. A tied head is none there."""
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    qkv = (("attn_q", queries, c.heads), ("attn_k", keys, c.kv_heads), ("attn_v", keys, 0))
    found: dict[str, tuple[Rows, ...]] = {
        "embed_tokens.weight": (Rows("token_embd.weight", c.vocab),),
        "norm.weight": (Rows("output_norm.weight", c.hidden),),
    }
    if not c.tied:
        found["lm_head.weight"] = (Rows("output.weight", c.vocab),)
    for i in range(c.layers):
        found[f"layers.{i}.input_layernorm.weight"] = (Rows(f"blk.{i}.attn_norm.weight", c.hidden),)
        found[f"layers.{i}.post_attention_layernorm.weight"] = (Rows(f"blk.{i}.ffn_norm.weight", c.hidden),)
        for name, biased, pieces in (
            ("qkv_proj", c.attention_bias, qkv),
            ("o_proj", c.attention_bias, (("attn_output", c.hidden, 0),)),
            ("gate_up_proj", c.mlp_bias, (("ffn_gate", c.ffn, 0), ("ffn_up", c.ffn, 0))),
            ("down_proj", c.mlp_bias, (("ffn_down", c.hidden, 0),)),
        ):
            for kind in ("weight", "bias")[: 1 + biased]:
                found[f"layers.{i}.{name}.{kind}"] = tuple(Rows(f"blk.{i}.{n}.{kind}", r, h) for n, r, h in pieces)
    return found


def entries(decoder: Decoder, importance: Mapping[str, Tensor]) -> list[Entry]:
    """`importance` by the module's names."""
    parameters = dict(decoder.named_parameters())
    found = []
    for name, pieces in names(decoder.config).items():
        rows = parameters[name].split([piece.rows for piece in pieces])
        found += [Entry(p.name, own, p.heads, importance.get(name)) for p, own in zip(pieces, rows, strict=True)]
    if decoder.config.rope_scaling:
        found.append(Entry(FACTORS, _rope_factors(decoder.config)))
    return found


def other_kinds(decoder: Decoder, types: Sequence[str]) -> dict[str, Kind]:
    """What PATTERN=KIND say, of the names in the file; `decoder` may be a skeleton. Raises UsageError."""
    rows = {e.name: e.tensor.shape[-1] for e in entries(decoder, {}) if e.tensor.ndim == 2}
    return tensor_types.kinds(types, rows)


def _rope_factors(config: DecoderConfig) -> Tensor:
    """What divides each frequency, `[head_dim / 2]`: this says every kind of scaling that is known here."""
    return Rope(config.head_dim, config.rope_theta).inv_freq() / config.rope.inv_freq()
