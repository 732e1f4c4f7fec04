"""Tables and progress of `edge eval`, for 80 columns."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from edge.cli.tables import facts, table

if TYPE_CHECKING:
    from edge.evaluation.comparison import Comparison
    from edge.evaluation.runner import Progress as Asked
    from edge.evaluation.runner import Report
    from edge.evaluation.task import Metric

_EVERY = 60.0  # seconds between two lines where no bar can be drawn


class Answers(Progress):
    """A bar with the score so far and the time left; where stderr is no terminal, a line a minute."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"))
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        self.done = 0
        self._said = time.monotonic()

    def report(self, found: Asked) -> None:
        self.done = found.done
        text = f"score {100 * found.score:.1f} %, {duration(found.seconds_left)} left"
        if self.disable:
            if time.monotonic() - self._said >= _EVERY:
                self._said = time.monotonic()
                self.console.print(Text(f"{found.done}/{found.total}: {text}"), soft_wrap=True)
            return
        if not self.tasks:
            self.add_task("", total=found.total)
        self.update(self.tasks[0].id, completed=found.done, description=text)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def report(found: Report) -> RenderableType:
    run = found.run
    asked = (
        f"{found.asked} questions" if found.asked == run.questions else f"{found.asked} of {run.questions} questions"
    )
    about = facts({run.title: f"{asked}, {found.seconds:.2f} s each", "bundle": run.bundle})
    rows = table("Metric", "Of", "Value", "95 % interval", "n", right=("Value", "n"))
    before = None
    for metric in found.metrics:
        part = "all" if not metric.part else metric.part if metric.part != before else ""
        before = metric.part
        rows.add_row(metric.name, part, _value(metric), f"{metric.low:.1f} to {metric.high:.1f}", str(metric.count))
    return Group(about, "", rows)


def _value(metric: Metric) -> str:
    return f"{metric.value:.2f} %" if metric.unit == "%" else f"{metric.value:.1f}"


def remarks(found: Report) -> Iterator[str]:
    """What a reader of the figures should know."""
    if found.too_long:
        yield f"prompts that did not fit into the context, and count as wrong: {found.too_long}"
    if found.cut_off:
        yield f"answers that were cut off, at the most tokens or the end of the context: {found.cut_off}"


def comparison(found: Comparison, margin: float | None) -> RenderableType:
    """Two runs, the difference, the test; `margin` is a share."""
    pairs, (before, after) = found.paired, found.means
    test = "exact binomial" if pairs.exact else "χ² with continuity correction"
    both = pairs.count - pairs.better - pairs.worse
    shown = {
        found.first.title: f"{pairs.count} questions about {found.images} images",
        "A": f"{100 * before:.2f} %   {found.first.bundle}",
        "B": f"{100 * after:.2f} %   {found.second.bundle}",
        "B − A": f"{_signed(pairs.difference)} points, 95 % interval {_signed(pairs.low)} to {_signed(pairs.high)}",
        "pairs": f"{pairs.better} better in B, {pairs.worse} worse, {both} equal; "
        f"{found.same_text} answers are the same text",
        "McNemar": f"p = {_p(pairs.p)} ({test})",
    }
    if margin is not None:
        verdict = {"no worse": "B is no worse", "worse": "B is worse", "open": "open: too few questions to tell"}
        shown[f"{100 * margin:g} points"] = verdict[pairs.verdict(margin)]
    return facts(shown)


def _signed(share: float) -> str:
    return f"{100 * share:+.2f}"


def _p(value: float) -> str:
    return "less than 0.0001" if value < 1e-4 else f"{value:.4f}"
