"""Flash attention on a card: used where `edge verify` found it equal, for one bundle, library version and card."""

from __future__ import annotations

import contextlib
from pathlib import Path

from edge.bundle.manifest import MANIFEST
from edge.devices import detect, file_facts
from edge.engines import engine_named
from edge.planning.plan import Plan

_EQUAL, _OTHER = "equal", "other"


def splits_on_card(plan: Plan) -> bool:
    """Whether the decoder's engine has it, and computes on a card: on the CPU it is the engine's own choice."""
    return bool(plan.gpu_layers) and any(
        choice.role == "decoder" and choice.provider != "cpu" for choice in plan.choices
    )


def proven(bundle: Path, plan: Plan) -> bool | None:
    """What is remembered; False where nothing is. None where the choice is the engine's."""
    if not splits_on_card(plan):
        return None
    with contextlib.suppress(LookupError, OSError):
        return file_facts.fact(bundle / MANIFEST, _name(plan), _unknown) == _EQUAL
    return False


def remember(bundle: Path, plan: Plan, equal: bool) -> None:
    with contextlib.suppress(OSError):
        file_facts.fact(bundle / MANIFEST, _name(plan), lambda _: _EQUAL if equal else _OTHER)


def _unknown(path: Path) -> str:
    raise LookupError(path)


def _name(plan: Plan) -> str:
    engine = engine_named(next(choice.engine for choice in plan.choices if choice.role == "decoder"))
    card = detect().graphics.card
    return f"flash {engine.name} {engine.version} {plan.cache} {card and (card.name, card.compute, card.cuda)}"
