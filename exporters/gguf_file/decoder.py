"""A Llama-shaped decoder under llama.cpp's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import gguf
from torch import Tensor

from exporters.attention import Rope
from exporters.decoders import DecoderConfig
from exporters.decoders.llama import Decoder, Layer
from exporters.gguf_file.entries import Entry

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


def entries(decoder: Decoder, importance: Mapping[str, Tensor]) -> list[Entry]:
    """`importance` by the module's names."""
    found = [
        Entry("token_embd.weight", decoder.embed_tokens.weight),
        Entry("output_norm.weight", decoder.norm.weight),
    ]
    if not decoder.config.tied:
        found.append(Entry("output.weight", decoder.lm_head.weight, importance=importance.get("lm_head.weight")))
    for index, layer in enumerate(cast("list[Layer]", decoder.layers)):
        found += _layer(layer, index, decoder.config, importance)
    if decoder.config.rope_scaling:
        found.append(Entry("rope_freqs.weight", _rope_factors(decoder.config)))
    return found


def _rope_factors(config: DecoderConfig) -> Tensor:
    """What divides each frequency, `[head_dim / 2]`: this says every kind of scaling that is known here."""
    return Rope(config.head_dim, config.rope_theta).inv_freq() / config.rope.inv_freq()


def _layer(layer: Layer, index: int, c: DecoderConfig, importance: Mapping[str, Tensor]) -> Iterator[Entry]:
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    yield Entry(f"blk.{index}.attn_norm.weight", layer.input_layernorm.weight)
    yield Entry(f"blk.{index}.ffn_norm.weight", layer.post_attention_layernorm.weight)
    for name, linear, pieces in (
        ("qkv_proj", layer.qkv_proj, (("attn_q", queries, c.heads), ("attn_k", keys, c.kv_heads), ("attn_v", keys, 0))),
        ("o_proj", layer.o_proj, (("attn_output", c.hidden, 0),)),
        ("gate_up_proj", layer.gate_up_proj, (("ffn_gate", c.ffn, 0), ("ffn_up", c.ffn, 0))),
        ("down_proj", layer.down_proj, (("ffn_down", c.hidden, 0),)),
    ):
        columns = importance.get(f"layers.{index}.{name}.weight")
        start = 0
        for theirs, rows, heads in pieces:
            own = slice(start, start + rows)
            yield Entry(f"blk.{index}.{theirs}.weight", linear.weight[own], heads, columns)
            if linear.bias is not None:
                yield Entry(f"blk.{index}.{theirs}.bias", linear.bias[own], heads)
            start += rows
