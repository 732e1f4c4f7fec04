"""Medians of rounds in turns, and what they are beside ours: Markdown for people, JSON for programs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence

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
    """A line for each contestant: medians with (least – most), and under it ours divided by it."""
    present = [name for name, figures in rounds.items() if figures]
    middle = medians({name: rounds[name] for name in present})
    keys = [key for key in ROWS if any(key in found for found in middle.values())]
    lines = ["| | " + " | ".join(ROWS[key][0] for key in keys) + " |", "|---" * (len(keys) + 1) + "|"]
    for name in present:
        lines.append(f"| {name} | " + " | ".join(_cell(rounds[name], key) for key in keys) + " |")
    lines += [f"| {name} | not timed: {reason} |" + " |" * (len(keys) - 1) for name, reason in reasons.items()]
    if ours in present:
        beside = ratios({name: rounds[name] for name in present}, ours)
        lines += ["", f"{ours}, divided by (median of the rounds' ratios; of rates more is better, of times less):", ""]
        lines += lines[:2]
        for name in present:
            if name != ours:
                cells = (f"{beside[name][key]:.2f}" if key in beside[name] else "" for key in keys)
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
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
