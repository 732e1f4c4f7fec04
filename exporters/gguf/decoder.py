"""A decoder under llama.cpp's names, which its family knows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gguf
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from exporters.formats import NOTHING
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


def entries(
    decoder: LanguageModel, importance: Mapping[str, Tensor], scales: Mapping[str, Tensor] = NOTHING
) -> list[Entry]:
    """`importance` and `scales` by the module's names."""
    parameters = dict(decoder.named_parameters())
    found = []
    for name, pieces in family(decoder.config).gguf_tensors(decoder.config).items():
        sizes, matters, given = [piece.rows for piece in pieces], importance.get(name), scales.get(name)
        shares = [None] * len(pieces) if given is None else given.split(sizes)
        for piece, own, share in zip(pieces, parameters[name].split(sizes), shares, strict=True):
            found.append(Entry(piece.name, own, piece.heads, matters, scales=share))
    if decoder.config.rope.scaling:
        found.append(Entry(FACTORS, _rope_factors(decoder.config)))
    return found


def other_kinds(decoder: LanguageModel, types: Sequence[str]) -> dict[str, Kind]:
    """What PATTERN=KIND say, of the names in the file; `decoder` may be a skeleton. Raises UsageError."""
    rows = {e.name: e.tensor.shape[-1] for e in entries(decoder, {}) if e.tensor.ndim == 2}
    return tensor_types.kinds(types, rows)


def rows_of(decoder: LanguageModel, names: Collection[str]) -> dict[str, Tensor]:
    """Parameter -> bool `[N]`, the rows that `names` of the file hold; those of which they hold any."""
    found = {
        name: torch.cat([torch.full((piece.rows,), piece.name in names) for piece in pieces])
        for name, pieces in family(decoder.config).gguf_tensors(decoder.config).items()
    }
    return {name: rows for name, rows in found.items() if rows.any()}


def _rope_factors(config: DecoderConfig) -> Tensor:
    """What divides each frequency, `[width / 2]`: this says every kind of scaling that is known here."""
    return replace(config.rope, scaling=None).inv_freq() / config.rope.inv_freq()
