"""A decoder under llama.cpp's names, which its family knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gguf
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from exporters.gguf import tensor_types
from exporters.gguf.entries import Entry
from exporters.models.decoders import DecoderConfig, LanguageModel, family

FACTORS = "rope_freqs.weight"
ROTATED = "rope.dimension_count"  # whole heads, unless a family's settings say otherwise
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
    writer.add_rope_freq_base(config.rope.theta)
    for key, value in ({ROTATED: config.head_dim} | family(config).gguf_settings(config)).items():
        add: Any = {bool: writer.add_bool, int: writer.add_uint32}.get(type(value), writer.add_float32)
        add(f"{writer.arch}.{key}", value)
    writer.add_vocab_size(config.vocab)


def entries(decoder: LanguageModel, importance: Mapping[str, Tensor]) -> list[Entry]:
    """`importance` by the module's names."""
    parameters = dict(decoder.named_parameters())
    found = []
    for name, pieces in family(decoder.config).gguf_tensors(decoder.config).items():
        rows = parameters[name].split([piece.rows for piece in pieces])
        found += [Entry(p.name, own, p.heads, importance.get(name)) for p, own in zip(pieces, rows, strict=True)]
    if decoder.config.rope.scaling:
        found.append(Entry(FACTORS, _rope_factors(decoder.config)))
    return found


def other_kinds(decoder: LanguageModel, types: Sequence[str]) -> dict[str, Kind]:
    """What PATTERN=KIND say, of the names in the file; `decoder` may be a skeleton. Raises UsageError."""
    rows = {e.name: e.tensor.shape[-1] for e in entries(decoder, {}) if e.tensor.ndim == 2}
    return tensor_types.kinds(types, rows)


def _rope_factors(config: DecoderConfig) -> Tensor:
    """What divides each frequency, `[width / 2]`: this says every kind of scaling that is known here."""
    return replace(config.rope, scaling=None).inv_freq() / config.rope.inv_freq()
