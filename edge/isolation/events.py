"""Events of an isolated child, read by a parent that trusts none of them: kinds, bounds and numbers are checked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from edge import errors
from edge.errors import EdgeError, EngineError
from edge.inference.generate import Answer, StopReason, Timings
from edge.verify import Report, Row

MOST_TEXT = 1 << 16  # letters of a piece of an answer, and of a plan
MOST_MESSAGE = 1 << 13  # letters of an error, a note, and of anything else that is said
_MOST_ITEMS = 1000  # of a list of notes, or of a report's rows


@dataclass(frozen=True)
class IsolatedPlan:
    """What `edge run` says of a plan that another process made."""

    given_up: tuple[str, ...]
    notes: tuple[str, ...]
    free: tuple[str, ...]
    facts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return dict(self.facts)


def plan(event: Mapping[str, Any]) -> IsolatedPlan:
    """Raises ValueError, as all of these."""
    facts = _mapping(event, "plan")
    if len(json.dumps(facts)) > MOST_TEXT:
        raise ValueError("its plan is too long")
    return IsolatedPlan(_texts(facts, "given_up"), _texts(facts, "notes"), _texts(event, "free"), facts)


def piece(event: Mapping[str, Any]) -> str:
    return text(event, "text", MOST_TEXT)


def answer(event: Mapping[str, Any], said: str) -> Answer:
    """`said`: the pieces that came before, which are its text."""
    told = _mapping(event, "answer")
    reason: Any = told.get("stop_reason")
    if reason not in get_args(StopReason):
        raise ValueError(f"an answer ended by {str(reason)[:40]!r}")
    ids = told.get("token_ids")
    if not isinstance(ids, list) or not all(_is_count(i) for i in ids):
        raise ValueError("its token ids are none")
    counted = ("prompt_tokens", "image_tokens", "cached_tokens", "generated_tokens")
    times = _mapping(told, "timings")
    return Answer(
        text=said,
        token_ids=tuple(ids),
        stop_reason=reason,
        **{name: count(told, name) for name in counted},
        timings=Timings(**{field.name: number(times, field.name) for field in fields(Timings)}),
    )


def report(event: Mapping[str, Any]) -> Report:
    """Whether its rows hold is decided here."""
    told = _mapping(event, "report")
    rows = told.get("rows")
    if not isinstance(rows, list) or not 0 < len(rows) <= _MOST_ITEMS:
        raise ValueError("its report has no rows")
    kept = ("evaluated", "adopted", "providers", "notes")
    return Report(tuple(map(_row, rows)), **{name: _texts(told, name, missing=()) for name in kept})


def error(event: Mapping[str, Any]) -> EdgeError:
    """An error of the tree; another kind is an EngineError."""
    kind = getattr(errors, str(event.get("kind")), None)
    if not (isinstance(kind, type) and issubclass(kind, EdgeError)):
        kind = EngineError
    hint = None if event.get("hint") is None else text(event, "hint", MOST_MESSAGE)
    return kind(text(event, "message", MOST_MESSAGE), hint=hint)


def text(event: Mapping[str, Any], name: str, most: int) -> str:
    found = event.get(name)
    if not isinstance(found, str) or len(found) > most:
        raise ValueError(f"its {name} is no text of {most:,} letters at most")
    found.encode()  # half of a surrogate pair is a text that nobody can write
    return found


def count(event: Mapping[str, Any], name: str) -> int:
    found: Any = event.get(name)
    if not _is_count(found):
        raise ValueError(f"its {name} is {str(found)[:40]!r}")
    return int(found)


def number(event: Mapping[str, Any], name: str) -> float:
    found = event.get(name)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise ValueError(f"its {name} is {str(found)[:40]!r}")
    return float(found)


def _is_count(found: object) -> bool:
    return type(found) is int and 0 <= found < 1 << 63


def _mapping(event: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if not isinstance(found := event.get(name), dict):
        raise ValueError(f"its {name} is no object")
    return found


def _texts(event: Mapping[str, Any], name: str, missing: tuple[str, ...] | None = None) -> tuple[str, ...]:
    found = event.get(name, missing)
    if not isinstance(found, list | tuple) or len(found) > _MOST_ITEMS:
        raise ValueError(f"its {name} is no list")
    if not all(isinstance(item, str) and len(item) <= MOST_MESSAGE for item in found):
        raise ValueError(f"its {name} holds what is no text")
    return tuple(found)


def _row(told: object) -> Row:
    if not isinstance(told, dict):
        raise ValueError("a row of its report is none")
    bounds = _mapping(told, "tolerance")
    found = _mapping(told, "error")
    distances = {str(name): math.nan if found[name] is None else number(found, name) for name in found}
    tolerance = {str(name): number(bounds, name) for name in bounds}
    if unknown := tolerance.keys() - distances.keys():
        raise ValueError(f"a row of its report lacks {sorted(unknown)[0][:40]!r}")
    return Row(text(told, "stage", 100), text(told, "against", 100), distances, tolerance)
