"""Sizes of a model, read off its manifest: the input of memory and roofline arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import isqrt
from typing import Any

from edge import plugins
from edge.bundle.manifest import Manifest, Part
from edge.decoders.embedding_table import SCALES, TABLE
from edge.spec import DecoderSpec

FORMATS = "exporters.formats"
PATCH = 20  # pixels: a vision transformer's patches are smaller; where they look larger, a projector merged four
HEAD = 64  # the width of a vision transformer's attention heads
_DTYPES = {"float16": 2, "bfloat16": 2, "int8": 1}  # of keys and values that a graph declares; else 4


@dataclass(frozen=True)
class Sizes:
    """Counts of weights, not bytes. `vision` counts the projector too; `decoder` its linear layers without `head`,
    which is as large as the embedding table."""

    vision: int
    patches: int
    image_tokens: int
    decoder: int
    head: int
    spec: DecoderSpec

    @property
    def width(self) -> int:
        """Of the vision transformer, from its weights: 12 width² a layer, and 24 layers at a width of 1024."""
        return round((self.vision * 1024 / 24 / 12) ** (1 / 3)) if self.vision else 0

    @property
    def layers(self) -> int:
        """Of the vision transformer."""
        return round(self.vision / (12 * self.width**2)) if self.vision else 0


def sizes(manifest: Manifest, parts: Iterable[Part]) -> Sizes:
    """From the files' bytes and their schemes: good to a few percent."""
    spec, tokens = manifest.spec.decoder, manifest.spec.prompt.image_tokens
    head = spec.vocab * spec.hidden
    vision = decoder = 0.0
    for part in parts:
        weights = part.size / bytes_per_weight(part.format, part.scheme)
        if "decoder" in part.covers:
            decoder = max(0.0, weights - 2 * head)
        else:
            vision += weights
    grid = isqrt(tokens)
    merged = grid > 0 and manifest.spec.image.size / grid > PATCH
    return Sizes(round(vision), (4 if merged else 1) * tokens, tokens, round(decoder), head, spec)


def bytes_per_token(part: Part, sizes: Sizes) -> float:
    """What decoding one token reads of the decoder's weights: all of them but the embedding table, of which one row is
    looked up; keys and values not counted. A table that lies within another file is taken to be stored as the rest is,
    and not to be the head as well."""
    beside = sum(file.bytes for file in part.files if file.path.endswith((TABLE, SCALES)))
    return part.size - (beside or bytes_per_weight(part.format, part.scheme) * sizes.head)


def bytes_per_weight(format: str, scheme: str) -> float:
    """As the format says that writes it; 1 for a scheme that it does not list."""
    return table(format).get(scheme, 1.0) if format in plugins.names(FORMATS) else 1.0


@cache
def table(format: str) -> Mapping[str, float]:
    """scheme -> bytes of a weight. Read without importing the format's converter."""
    found: Mapping[str, Any] = plugins.facts(FORMATS, format)
    return dict(found["BYTES_PER_WEIGHT"])


def cache_item(decoder: Part) -> int | None:
    """Bytes of a key's or value's number, where a graph fixes it; None where its engine keeps them itself."""
    kinds = {tensor.dtype for tensor in decoder.inputs if tensor.name.startswith("past_key_values.")}
    return max(_DTYPES.get(kind, 4) for kind in kinds) if kinds else None
