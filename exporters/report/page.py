"""The page: plots with a sentence each, what to be wary of, and the table behind them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from edge import __version__
from edge.bench.output import measured, quality
from edge.bench.schema import Row
from exporters.report.plots import PLOTS, WIDTHS
from exporters.report.runs import STAGES, Run

_TITLES = {
    "first answer": "The first answer, by stage",
    "decoding": "Decoding",
    "memory": "Memory",
    "sustained": "Speed under load",
}
_STAGE_NAMES = {"picture": "picture", "vision": "vision encode", "prefill": "prompt", "rest": "rest"}
_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #f6f7f9; --ink: #1c2128; --soft: #57606a; --line: #dde1e6;
  --ghost: #d5dae1; --mark: #cf222e; --c0: #e69f00; --c1: #0b84c6; --c2: #12805c; --c3: #98a1ac; --c4: #7c56c2;
  --c5: #c2410c; --c6: #b03a7c; --c7: #5b6b00; --warn: #fff4d6; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --card: #1b212a; --ink: #e7ebf0; --soft: #a3adb9;
  --line: #333c47; --ghost: #38424f; --mark: #ff7b72; --c0: #f0b429; --c1: #58b0e8; --c2: #3fb68b; --c3: #7d8793;
  --c4: #a98be8; --c5: #f08a4b; --c6: #e07bb4; --c7: #b5c342; --warn: #3a3014; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 54rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 0 0 .25rem; }
p { margin: .25rem 0 .75rem; color: var(--soft); overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1rem; margin: 1rem 0; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif !important; }
.narrow { display: none; }
@media (max-width: 600px) { .wide { display: none; } .narrow { display: block; } section { padding: .75rem; } }
.key { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0; margin: 0 0 .5rem;
  font-size: .875rem; }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 3px; margin-right: .4em; }
.warn { background: var(--warn); }
.warn ul { margin: 0; padding-left: 1.25rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem .3rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { text-align: left; padding-top: 1rem; white-space: normal; }
tbody th span { position: sticky; left: 0; display: inline-block; max-width: min(100%, 75vw); overflow-wrap: anywhere; }
"""


def page(runs: Sequence[Run]) -> str:
    parts = [_section(name, runs) for name in PLOTS]
    devices = ", ".join(dict.fromkeys(run.device for run in runs if run.device))
    times = sorted(str(row["test_time"]) for run in runs for row in run.rows if "test_time" in row)
    about = " · ".join(filter(None, [devices, times[-1].replace("T", " ").replace("Z", " UTC") if times else ""]))
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>Edge VLM benchmark</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Benchmark</h1>
<p>{escape(about)}</p>
{_warnings(runs)}
{"".join(parts)}
{_table(runs)}
<p>Made by edge-vlm {escape(__version__)}. ± is the standard deviation of the repetitions; none is given for a single
one. Quality: the share of golden's greedy tokens that is equal, and the cosine of the logits before them, against
torch in fp32; of questions, the share that was answered right.</p>
</body>
</html>
"""


def _section(name: str, runs: Sequence[Run]) -> str:
    plots = {kind: PLOTS[name](runs, width) for kind, width in WIDTHS.items()}
    if None in plots.values():
        return ""
    shown = "".join(f'<div class="{kind}">{plot}</div>' for kind, plot in plots.items())
    about = {"first answer": _about_stages, "decoding": _about_decoding, "memory": _about_memory}
    text = about.get(name, _about_sustained)(runs)
    return f"<section><h2>{_TITLES[name]}</h2>{text}{shown}</section>\n"


def _about_stages(runs: Sequence[Run]) -> str:
    return "<p>What passes between the question about a new picture and the first token.</p>" + _key(
        [(f"c{number}", _STAGE_NAMES[stage]) for number, stage in enumerate(STAGES)]
    )


def _about_decoding(runs: Sequence[Run]) -> str:
    if not any(run.roofline(row) for run in runs for row in run.decoding()):
        return "<p>Tokens per second; the memory's bandwidth is not known, so there is no roofline.</p>"
    bandwidths = dict.fromkeys(f"{run.bandwidth / 1e9:.1f} GB/s" for run in runs if run.bandwidth)
    text = "Behind each bar: how fast it could be if every token read the weights once at the memory's bandwidth"
    key = _key([("c2", "measured"), ("ghost", "roofline")])
    return f"<p>{text} ({', '.join(bandwidths)}).</p>{key}"


def _about_memory(runs: Sequence[Run]) -> str:
    key = [("c4", "peak of the process"), ("ghost", "free when it began")]
    over = any(limit is not None and peak > limit for peak, limit in filter(None, (run.memory() for run in runs)))
    return _key([*key, ("mark", "more than was free")] if over else key)


def _about_sustained(runs: Sequence[Run]) -> str:
    found = [(run, row) for run in runs if (row := run.sustained())]
    lines = []
    for number, (run, row) in enumerate(found):
        first, steady = row["sustained"]["first_ts"], row["sustained"]["steady_ts"]
        change = f"{run.label}: {first:.1f} t/s at first, {steady:.1f} t/s at the end ({_percent(steady / first - 1)})"
        lines.append((f"c{number % 8}", change))
    return _key(lines)


def _percent(share: float) -> str:
    return f"{share:+.0%}".replace("-", "−").replace("%", " %")


def _key(entries: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<li><i style="background: var(--{colour})"></i>{escape(text)}</li>' for colour, text in entries)
    return f'<ul class="key">{items}</ul>'


def _warnings(runs: Sequence[Run]) -> str:
    found = [f"<li>{escape(run.label)}: {escape(warning)}</li>" for run in runs for warning in run.warnings()]
    if not found:
        return ""
    return f'<section class="warn"><h2>To be wary of</h2><ul>{"".join(found)}</ul></section>'


def _table(runs: Sequence[Run]) -> str:
    titles = ("Test", "t/s", "ms", "MB", "J", "°C", "MHz", "Quality")
    cells = {run.label: [_cells(row) for row in run.rows] for run in runs}
    kept = [n for n in range(len(titles)) if n == 0 or any(row[n] for rows in cells.values() for row in rows)]
    head = "".join(f'<th scope="col">{titles[n]}</th>' for n in kept)
    body = ""
    for label, rows in cells.items():
        body += f'<tr><th scope="rowgroup" colspan="{len(kept)}"><span>{escape(label)}</span></th></tr>'
        body += "".join("<tr>" + "".join(f"<td>{escape(row[n])}</td>" for n in kept) + "</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<section><h2>All figures</h2><div class="scroll">{table}</div></section>'


def _cells(row: Row) -> list[str]:
    scales = {"peak_bytes": (1e-6, 1), "energy_j": (1.0, 2), "temp_c": (1.0, 0), "clock_mhz": (1.0, 0)}
    shown = [f"{row[name] * scale:,.{digits}f}" if name in row else "" for name, (scale, digits) in scales.items()]
    return [row["test"], measured(row, "ts"), measured(row, "ns", 1e-6), *shown, quality(row)]
