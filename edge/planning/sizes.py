"""Sizes of a model, read off its manifest: the input of memory and roofline arithmetic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isqrt

from edge.bundle.manifest import Manifest, Part
from edge.decoders.embedding_table import SCALES, TABLE
from edge.recipes import HALF_CACHE, bytes_per_weight
from edge.spec import DecoderSpec

_DTYPES = {"float16": 2, "bfloat16": 2, "int8": 1}  # of the KV cache that a graph declares; else 4


@dataclass(frozen=True)
class Sizes:
    """Counts, not bytes."""

    vision: int  # weights of the vision encoder and the projector
    positions: int  # that the vision encoder's attention sees
    width: int  # of the vision encoder
    layers: int
    heads: int
    image_tokens: int  # of the golden picture
    decoder: int  # weights of its linear layers without the head
    ffn: int  # width of the decoder's feed-forward layers
    gated: bool  # whether they have a gate beside the up projection
    head: int  # weights; the embedding table has as many
    spec: DecoderSpec
    views: int = 1  # of the golden picture


def sizes(manifest: Manifest, parts: Iterable[Part]) -> Sizes:
    """What the manifest says; of schema 1, what its files' bytes suggest."""
    spec, vision, parts = manifest.spec.decoder, manifest.spec.vision, tuple(parts)
    counts = [("decoder" in part.covers, part.weights) for part in parts]
    if vision is None or spec.ffn is None or any(weights is None for _, weights in counts):
        return _from_bytes(manifest, parts)
    head = spec.vocab * spec.hidden
    views = manifest.golden_prompt.get("views") or {"count": 1, "image_tokens": manifest.spec.prompt.image_tokens}
    return Sizes(
        vision=sum(weights or 0 for speaks, weights in counts if not speaks),
        positions=vision.positions,
        width=vision.width,
        layers=vision.layers,
        heads=vision.heads,
        image_tokens=views["image_tokens"],
        decoder=max(0, sum(weights or 0 for speaks, weights in counts if speaks) - 2 * head),
        ffn=spec.ffn,
        gated=spec.gated is not False,
        head=head,
        spec=spec,
        views=views["count"],
    )


def _from_bytes(manifest: Manifest, parts: Iterable[Part]) -> Sizes:
    """Of a manifest of schema 1, from the files' bytes and their schemes: good to a few percent for one kind of vision
    encoder, and a guess for others."""
    spec, tokens = manifest.spec.decoder, manifest.spec.prompt.image_tokens
    vision = decoder = 0.0
    for part in parts:
        weights = part.size / bytes_per_weight(part.format, part.scheme)
        if "decoder" in part.covers:
            decoder = max(0.0, weights - 2 * spec.vocab * spec.hidden)
        else:
            vision += weights
    return guessed(spec, tokens, _patches(manifest.spec.image.size, tokens), round(vision), round(decoder))


def guessed(spec: DecoderSpec, image_tokens: int, patches: int, vision: int, decoder: int) -> Sizes:
    """Sizes that a manifest of schema 1 does not tell, from counts of weights: the vision encoder is taken for a
    transformer with 12 width² weights a layer, 24 layers at a width of 1024, heads of 64 and a class token."""
    width = round((vision * 1024 / 24 / 12) ** (1 / 3)) if vision else 0
    attention = 2 * spec.hidden * spec.head_dim * (spec.heads + spec.kv_heads)
    return Sizes(
        vision=vision,
        positions=patches + 1,
        width=width,
        layers=round(vision / (12 * width**2)) if vision else 0,
        heads=width // 64,
        image_tokens=image_tokens,
        decoder=decoder,
        ffn=max(0, round((decoder / spec.layers - attention) / (3 * spec.hidden))),
        gated=True,
        head=spec.vocab * spec.hidden,
        spec=spec,
    )


def _patches(size: int, image_tokens: int) -> int:
    """Of an image so many pixels wide, for a manifest of schema 1: a vision transformer's patches are smaller than 20
    pixels, and where they look larger, the projector merged four."""
    grid = isqrt(image_tokens)
    return (4 if grid > 0 and size / grid > 20 else 1) * image_tokens


def bytes_per_token(part: Part, sizes: Sizes) -> float:
    """What decoding one token reads of the decoder's weights: all of them but the embedding table, of which one row is
    looked up; the KV cache not counted. A table that lies within another file is taken to be stored as the rest is,
    and not to be the head as well."""
    beside = sum(file.bytes for file in part.files if file.path.endswith((TABLE, SCALES)))
    each = part.size / part.weights if part.weights else bytes_per_weight(part.format, part.scheme)
    return part.size - (beside or each * sizes.head)


def cache_item(decoder: Part) -> int | None:
    """Bytes of a number in the KV cache, where a graph fixes it; None where its engine keeps the cache itself."""
    kinds = {tensor.dtype for tensor in decoder.inputs if tensor.name.startswith("past_key_values.")}
    if not kinds and (decoder.format, decoder.scheme) in HALF_CACHE:  # nothing is written yet
        return 2
    return max(_DTYPES.get(kind, 4) for kind in kinds) if kinds else None
