"""Two files of answers to the same questions, paired question by question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge.errors import UsageError
from edge.evaluation import paired
from edge.evaluation.answers_file import Line, Run, read
from edge.evaluation.paired import Paired


@dataclass(frozen=True)
class Comparison:
    """The second run against the first. Mean scores are 0 to 1."""

    first: Run
    second: Run
    means: tuple[float, float]
    images: int
    same_text: int  # questions with the same answer, letter by letter
    paired: Paired

    def to_json(self, margin: float | None) -> dict[str, Any]:
        """In percent and points; `margin` is of a mean score, 0 to 1."""
        pairs = self.paired
        found = {
            "first": asdict(self.first),
            "second": asdict(self.second),
            "questions": pairs.count,
            "images": self.images,
            "means": [100 * mean for mean in self.means],
            "difference": 100 * pairs.difference,
            "interval": [100 * pairs.low, 100 * pairs.high],
            "better": pairs.better,
            "worse": pairs.worse,
            "same_text": self.same_text,
            "p": pairs.p,
            "exact": pairs.exact,
        }
        return found if margin is None else {**found, "margin": 100 * margin, "verdict": pairs.verdict(margin)}


def compare(first: Path, second: Path) -> Comparison:
    """Raises UsageError where the files do not pair: another task, other questions, or not the same ones answered."""
    (run, lines), (other, other_lines) = read(first), read(second)
    for what, one, two in (("task", run.task, other.task), ("questions", run.questions_sha256, other.questions_sha256)):
        if one != two:
            raise UsageError(
                f"{first} and {second} do not pair: {what} {one} ({len(lines)} answers), and {two} "
                f"({len(other_lines)} answers)",
                hint="run both with the same --task and the same files",
            )
    _require_pairs(first, second, {line.id for line in lines}, {line.id for line in other_lines})
    units, others = _units(lines, run), _units(other_lines, other)
    names = list(units)
    before, after = ([found[name][0] for name in names] for found in (units, others))
    clusters = [units[name][1] for name in names]
    return Comparison(
        first=run,
        second=other,
        means=(sum(before) / len(names), sum(after) / len(names)),
        images=len(set(clusters)),
        same_text=sum(units[name][2] == others[name][2] for name in names),
        paired=paired.compare(before, after, clusters),
    )


def _units(lines: Sequence[Line], run: Run) -> Mapping[str, tuple[float, str, tuple[str, ...]]]:
    """What counts as a question, by its name: its score, its image, its answers."""
    found: dict[str, list[Line]] = {}
    for line in sorted(lines, key=lambda line: line.id):
        found.setdefault(line.group if run.whole_groups else line.id, []).append(line)
    return {
        name: (min(line.score for line in unit), unit[0].image or name, tuple(line.text for line in unit))
        for name, unit in found.items()
    }


def _require_pairs(first: Path, second: Path, names: set[str], others: set[str]) -> None:
    if names == others and names:
        return
    raise UsageError(
        f"{first} and {second} do not pair: {len(names & others)} questions are answered in both, "
        f"{len(names - others)} in the first alone, {len(others - names)} in the second alone",
        hint="an interrupted run goes on with the same command; use the same --limit for both",
    )
