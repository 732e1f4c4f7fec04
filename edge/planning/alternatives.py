"""Suggests what would fit when a model does not: a shorter context, a narrower scheme, another recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from edge.bundle.manifest import Manifest
from edge.engines import installed_engines, made_for
from edge.errors import EngineError
from edge.planning.memory import Need, least, memory, shrunk
from edge.recipes import BYTES_PER_WEIGHT, NO_DECODER, RECIPES
from edge.types import CacheKind

MARGIN = 0.97  # of the memory: bytes of a weight are known to a few percent


def too_little(
    manifest: Manifest, need: Need, limit: int, context: int, cache: CacheKind | None, place: str = "there"
) -> EngineError:
    """What it would take of the `limit` bytes that are `place`, and what would fit. `context` 0: none was asked for."""
    asked = memory(need, context, cache) if context else least(need, cache)
    where = (
        f"at a context of {context}" if context else "at the least, with vision encoder and decoder open one at a time"
    )
    message = (
        f"too little memory: {manifest.name} takes {_mb(asked.peak)} {where}, and {_mb(limit)} are {place}\n"
        f"  vision {_mb(need.vision)}, decoder {_mb(need.decoder)}, KV cache {_mb(asked.cache)}, "
        f"activations {_mb(sum(asked.activations))}, libraries {_mb(asked.runtime)}"
    )
    if context and (shorter := shrunk(need, limit, cache)):
        return EngineError(message, hint=f"a context of {shorter.context} fits")
    return EngineError(message, hint=_hint(need, limit))


def schemes(need: Need, limit: int) -> Iterator[str]:
    """The decoder's schemes that would fit, as `format scheme`, the widest first."""
    weights = need.sizes.decoder + 2 * need.sizes.head
    engines = installed_engines()
    able = {format: made_for(format, engines) for format in BYTES_PER_WEIGHT}
    options = {
        (count, format, scheme)
        for format, table in BYTES_PER_WEIGHT.items()
        if any(not engine.systems for engine in able[format])  # not one maker's systems only
        for scheme, count in table.items()
        if (format, scheme) not in NO_DECODER
    }
    for count, format, scheme in sorted(options, reverse=True):
        decoder = round(weights * count * able[format][0].held(scheme))
        if least(replace(need, decoder=decoder)).peak <= MARGIN * limit:
            yield f"{format} {scheme}"


def _hint(need: Need, limit: int) -> str:
    fitting = list(schemes(need, limit))
    if not fitting:
        floor = memory(replace(need, decoder=0), 1, None, True).peak
        room = max(0, limit - floor)
        return f"no scheme makes it fit: {_mb(room)} are left for a decoder; take a smaller model, or another device"
    format, _, scheme = fitting[0].partition(" ")
    able = [recipe for recipe in RECIPES.values() if recipe.targets["decoder"].format == format]
    recipe = min(able, key=lambda recipe: len(recipe.targets)).name  # nothing beside the parts
    return f"edge export CHECKPOINT -o OUT --recipe {recipe} --scheme decoder={scheme} would fit"


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
