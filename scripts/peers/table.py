"""Medians of rounds in turns, and what they are beside ours: Markdown for people, JSON for programs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence

from common import ROWS, Figures

Rounds = Mapping[str, Sequence[Figures]]  # by a contestant's name


def medians(rounds: Rounds) -> dict[str, Figures]:
    found = {}
    for name, figures in rounds.items():
        keys = [key for key in ROWS if any(key in round_ for round_ in figures)]
        found[name] = {key: statistics.median(round_[key] for round_ in figures if key in round_) for key in keys}
    return found


def ratios(rounds: Rounds, ours: str) -> dict[str, Figures]:
    """Ours over each: the median of the rounds' own ratios, since what slows a round slows both."""
    found: dict[str, Figures] = {}
    for name, figures in rounds.items():
        pairs = list(zip(rounds[ours], figures, strict=False))
        keys = [key for key in ROWS if any(key in mine and key in theirs for mine, theirs in pairs)]
        found[name] = {
            key: statistics.median(mine[key] / theirs[key] for mine, theirs in pairs if key in mine and key in theirs)
            for key in keys
        }
    return found


def markdown(rounds: Rounds, reasons: Mapping[str, str], ours: str) -> str:
    """Medians (least – most); then ours divided by each; then who was not timed, and why."""
    present = {name: figures for name, figures in rounds.items() if figures}
    keys = [key for key in ROWS if any(key in round_ for figures in present.values() for round_ in figures)]
    text = _table(list(present), keys, lambda name, key: _cell(present[name], key))
    if ours in present:
        beside = ratios(present, ours)
        text += f"\n{ours}, divided by (medians of the rounds' own ratios; of rates more is better, of times less):\n\n"
        others = [name for name in present if name != ours]
        shared = [key for key in keys if any(key in beside[name] for name in others)]
        text += _table(others, shared, lambda name, key: f"{beside[name][key]:.2f}" if key in beside[name] else "")
    return text + "".join(f"\nNot timed: {name}: {reason}\n" for name, reason in reasons.items())


def _table(names: Sequence[str], keys: Sequence[str], cell: Callable[[str, str], str]) -> str:
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {ROWS[key][0]} | " + " | ".join(cell(name, key) for name in names) + " |" for key in keys]
    return "\n".join(lines) + "\n"


def to_json(rounds: Rounds, reasons: Mapping[str, str], ours: str, facts: Mapping[str, object]) -> str:
    present = {name: figures for name, figures in rounds.items() if figures}
    found = {
        **facts,
        "rounds": present,
        "medians": medians(present),
        "ratios": ratios(present, ours) if ours in present else {},
        "not_timed": dict(reasons),
    }
    return json.dumps(found, indent=1) + "\n"


def _cell(figures: Sequence[Figures], key: str) -> str:
    values = sorted(round_[key] for round_ in figures if key in round_)
    if not values:
        return ""
    middle = statistics.median(values)
    return _said(middle) if len(values) == 1 else f"{_said(middle)} ({_said(values[0])}–{_said(values[-1])})"


def _said(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
