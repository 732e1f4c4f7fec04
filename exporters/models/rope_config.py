"""How a decoder's config.json in transformers' layout says its rotary positions, and its window of positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from edge.errors import CheckpointError


class Told(NamedTuple):
    theta: float
    scaling: Mapping[str, Any] | None
    partial: float  # the share of each head that is rotated


def read(told: Mapping[str, Any], partial: float | None = None) -> Told:
    """As transformers 5 writes it, in `rope_parameters`, or those before it, in fields of their own.

    partial: the share of a head that a family rotates where the config says none; None: the family rotates whole heads.
    Raises CheckpointError on what contradicts itself, or is not computed.
    """
    rope = dict(told["rope_scaling"] or told["rope_parameters"] or {})
    if told["rope_scaling"] and told["rope_parameters"]:
        raise CheckpointError("config.json has both rope_scaling and rope_parameters", hint="keep the right one")
    _agree(told, rope, "rope_theta")
    theta = rope.pop("rope_theta", None) or told["rope_theta"] or 10000.0
    share = _partial(told, rope, partial)
    if "mrope_section" in rope:
        raise CheckpointError(
            "rotary positions of several axes (mrope_section) are not supported", hint="another model"
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "llama3":
        _agree(told, rope, "original_max_position_embeddings")
        original = told["original_max_position_embeddings"] or told["max_position_embeddings"]
        rope = {"original_max_position_embeddings": original, **rope}
    return Told(float(theta), None if kind == "default" else rope, share)


def rotary_dim(head_dim: int, partial: float) -> int | None:
    """The features of a head that are rotated, None for all. Raises CheckpointError on a share that cannot be."""
    width = int(head_dim * partial)
    if not 0 < partial <= 1 or width < 2 or width % 2:
        raise CheckpointError(
            f"partial_rotary_factor {partial!r} rotates {width} features of a head of {head_dim}",
            hint="an even number of them, at most all",
        )
    return None if width == head_dim else width


def context(told: Mapping[str, Any]) -> int:
    """The positions of a model whose layers may see the last `sliding_window` only: as far as the window reaches, and
    no further, attention through it is attention to all."""
    trained: int = told["max_position_embeddings"]
    window = told["sliding_window"]
    return trained if window is None else min(trained, window)


def _partial(told: Mapping[str, Any], rope: dict[str, Any], usual: float | None) -> float:
    _agree(told, rope, "partial_rotary_factor")
    given = rope.pop("partial_rotary_factor", None)
    given = told["partial_rotary_factor"] if given is None else given
    if usual is None and given not in (None, 1):
        raise CheckpointError(f"partial_rotary_factor {given!r} is not supported", hint="1: whole heads rotate")
    return float(given if given is not None else usual or 1)


def _agree(told: Mapping[str, Any], rope: Mapping[str, Any], name: str) -> None:
    """Which of the two places counts depends on the version of transformers."""
    if None not in (told[name], rope.get(name)) and told[name] != rope[name]:
        raise CheckpointError(
            f"config.json has {name} {told[name]!r}, its rope parameters have {rope[name]!r}", hint="keep the right one"
        )
