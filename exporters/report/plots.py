"""The plots as SVG, drawn by matplotlib. Colours are names that the page's style sheet gives a value, light or dark."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edge.bench.schema import Row
from exporters.report.runs import STAGES, Run

WIDTHS = {"wide": 760, "narrow": 350}  # CSS pixels: one point of the figure is one of them
# matplotlib takes no CSS: each name is drawn in a colour of its own, which is replaced afterwards.
COLOURS = {
    name: f"#f0{number:02x}0f"
    for number, name in enumerate(("ink", "soft", "line", "ghost", "mark", *(f"c{n}" for n in range(8))))
}
_HEIGHT = 0.36  # of a bar, of the room that it has
_TEXT = 11.0  # points
_CHARACTERS = 6.8  # points that a character takes on average, in the widest of the fonts that a browser may choose
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": _TEXT,
    "font.family": ["sans-serif"],
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["soft"],
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "grid.color": COLOURS["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def first_answer(runs: Sequence[Run], width: int) -> str | None:
    """Stacked bars: seconds until the first token, stage by stage."""
    found = [(run.label, stages) for run in runs if (stages := run.stages())]
    if not found:
        return None
    most = max(sum(stages.values()) for _, stages in found)
    scale, unit = (1e3, "ms") if most < 1 else (1.0, "s")

    def draw(axes: Axes) -> None:
        for y, (label, stages) in enumerate(found):
            left = 0.0
            for number, name in enumerate(STAGES):
                axes.barh(y, stages[name] * scale, left=left, height=_HEIGHT, color=COLOURS[f"c{number}"])
                left += stages[name] * scale
            _label(axes, y, label, width)
            _value(axes, y, left, f"{_digits(left)} {unit}")
        axes.set_xlim(0, most * scale * _room(width))
        axes.set_xlabel(f"from the question to the first token, in {unit}")

    return _bars(draw, len(found), width, "first-answer")


def decoding(runs: Sequence[Run], width: int) -> str | None:
    """Bars of tokens per second; behind them, where it is known, what the memory's bandwidth allows."""
    found = [(run, row) for run in runs for row in run.decoding()]
    if not found:
        return None
    bounds = [run.roofline(row) for run, row in found]
    ends = [max(_end(row), bound or 0) for (_, row), bound in zip(found, bounds, strict=True)]

    def draw(axes: Axes) -> None:
        for y, ((run, row), bound, end) in enumerate(zip(found, bounds, ends, strict=True)):
            speed = row["avg_ts"]
            if bound:
                axes.barh(y, bound, height=_HEIGHT, color=COLOURS["ghost"])
            axes.barh(y, speed, height=_HEIGHT, color=COLOURS["c2"], xerr=row.get("stddev_ts"), ecolor=COLOURS["ink"])
            _label(axes, y, f"{row['test']} · {run.label}", width)
            of = f" of {_digits(bound)}" if bound else ""
            _value(axes, y, end, f"{_digits(speed)}{of} t/s")
        axes.set_xlim(0, max(ends) * _room(width))
        axes.set_xlabel("tokens per second")

    return _bars(draw, len(found), width, "decoding")


def _end(row: Row) -> float:
    """Where the bar ends, with the line of its deviation."""
    return float(row["avg_ts"] + (row.get("stddev_ts") or 0.0))


def memory(runs: Sequence[Run], width: int) -> str | None:
    """Bars of peak memory, before what was free."""
    found = [(run.label, *measured) for run in runs if (measured := run.memory())]
    if not found:
        return None
    most = max(max(peak, limit or 0) for _, peak, limit in found)
    scale, unit = (1e-9, "GB") if most >= 1e9 else (1e-6, "MB")

    def draw(axes: Axes) -> None:
        for y, (label, peak, limit) in enumerate(found):
            if limit:
                axes.barh(y, limit * scale, height=_HEIGHT, color=COLOURS["ghost"])
            over = limit is not None and peak > limit
            axes.barh(y, peak * scale, height=_HEIGHT, color=COLOURS["mark" if over else "c4"])
            if limit and peak > limit:  # the bar hides where the limit was
                axes.vlines(limit * scale, y - _HEIGHT / 2, y + _HEIGHT / 2, color=COLOURS["ink"], linewidth=2)
            _label(axes, y, label, width)
            of = f" of {_digits(limit * scale)}" if limit else ""
            _value(axes, y, max(peak, limit or 0) * scale, f"{_digits(peak * scale)}{of} {unit}")
        axes.set_xlim(0, most * scale * _room(width))
        axes.set_xlabel(f"peak memory of the process, in {unit}")

    return _bars(draw, len(found), width, "memory")


def sustained(runs: Sequence[Run], width: int) -> str | None:
    """Speed, temperature and clock over time, a curve for each run."""
    found = [(run, row["sustained"]["windows"]) for run in runs if (row := run.sustained())]
    if not found:
        return None
    titles = {"ts": "tokens per second", "temp_c": "temperature, in °C", "clock_mhz": "clock, in MHz"}
    known = {key: title for key, title in titles.items() if any(key in w for _, windows in found for w in windows)}
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"sustained{width}"}):
        height = 40 + 170 * len(known)
        figure = Figure(figsize=(width / 72, height / 72))
        panels = figure.subplots(len(known), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (key, title) in zip(panels, known.items(), strict=True):
            for number, (_, windows) in enumerate(found):
                points = [(window["t_s"], window[key]) for window in windows if key in window]
                if points:
                    axes.plot(*zip(*points, strict=True), color=COLOURS[f"c{number % 8}"], linewidth=1.8)
            if key != "temp_c":
                axes.set_ylim(bottom=0)
            axes.set_title(title, loc="left", fontsize=_TEXT, color=COLOURS["soft"])
            axes.grid(True, axis="y", linewidth=0.6)
            axes.ticklabel_format(useOffset=False, style="plain")
            axes.tick_params(length=0)
        panels[-1].set_xlabel("seconds under load")
        figure.subplots_adjust(
            left=52 / width, right=1 - 14 / width, top=1 - 24 / height, bottom=44 / height, hspace=0.32
        )
        return _svg(figure)


PLOTS: Mapping[str, Callable[[Sequence[Run], int], str | None]] = {
    "first answer": first_answer,
    "decoding": decoding,
    "memory": memory,
    "sustained": sustained,
}


def _bars(draw: Callable[[Axes], None], count: int, width: int, name: str) -> str:
    bar = 48 if width > 500 else 62  # points that a bar with its label takes
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"{name}{width}"}):
        height = bar * count + 48
        figure = Figure(figsize=(width / 72, height / 72))
        axes = figure.add_axes((8 / width, 40 / height, 1 - 16 / width, 1 - 44 / height))
        draw(axes)
        axes.set_ylim(count - 0.65, -0.75)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(True, axis="x", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.locator_params(axis="x", nbins=8 if width > 500 else 4)
        return _svg(figure)


def _label(axes: Axes, y: float, text: str, width: int) -> None:
    """Above its bar, in two lines where there is little room; the whole of it stands in the table."""
    columns = int((width - 24) / _CHARACTERS)
    lines = textwrap.wrap(text, columns, max_lines=1 if width > 500 else 2, placeholder=" …")
    axes.text(0, y - 0.24, "\n".join(lines), va="bottom", ha="left", parse_math=False, linespacing=1.1)


def _value(axes: Axes, y: float, x: float, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", weight="bold")


def _room(width: int) -> float:
    """How much longer than the longest bar the axis is, for what stands behind it."""
    return 1.25 if width > 500 else 1.7


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    head, _, rest = text.partition(">")
    box = re.search(r'viewBox="[^"]+"', head)
    assert box is not None
    for name, colour in COLOURS.items():
        rest = rest.replace(colour, f"var(--{name})")
    return f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} aria-hidden="true">{rest}'
