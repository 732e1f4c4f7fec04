"""Tables and lines of the command line, as rich renderables for 80 columns. Nothing here prints."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from edge.cli import tables
from edge.cli.output import plain
from edge.errors import EdgeError
from edge.spec.pieces import shown
from edge.units import format_size

if TYPE_CHECKING:
    from edge.bundle.manifest import File, Manifest, Part
    from edge.devices import DeviceProfile
    from edge.doctor import Diagnosis
    from edge.formats.gguf_report import Findings
    from edge.inference.generate import Answer
    from edge.planning.fit import Fit, Prediction
    from edge.planning.placement import Placement
    from edge.spec import VLMSpec
    from edge.verify import Report, Row

MEASURES = {"max_abs": "Largest error", "cosine": "Cosine", "tokens": "Tokens alike"}

_NAMED = 3  # layers of a list


class Stages(Progress):
    """A bar for each stage of long work."""

    def __init__(self, console: Console) -> None:
        super().__init__(*self.get_default_columns(), console=console)
        self._bars: dict[str, TaskID] = {}

    @classmethod
    def get_default_columns(cls) -> tuple[ProgressColumn, ...]:
        return TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()

    def report(self, stage: str, fraction: float) -> None:
        stage = plain(stage)
        if stage not in self._bars:
            self._bars[stage] = self.add_task(stage, total=1.0)
        self.update(self._bars[stage], completed=fraction)

    def stop(self) -> None:
        if self._bars:
            super().stop()
        else:  # it would leave an empty line
            self.live.transient = True
            self.live.stop()

    def say(self, text: str) -> None:
        """A line above the bars."""
        self.console.print(Text(plain(text)), soft_wrap=True)


def parity(report: Report) -> RenderableType:
    """One line per stage and reference: what was measured, and what is allowed."""
    table = tables.table("Stage", "Against", *MEASURES.values(), "")
    for row in report.rows:
        verdict = "FAILED" if not row.ok else "ok" if row.tolerance else "cost"
        style = {"ok": "green", "FAILED": "bold red"}.get(verdict, "")
        table.add_row(row.stage, row.against, *(_measured(row, m) for m in MEASURES), Text(verdict, style))
    return table


def costs(role: str, found: Mapping[str, Any]) -> RenderableType:
    """One line per linear of a part, in the order of its computation: `exporters.judge.Cost` as JSON."""
    widened = found.get("widened", {})
    table = tables.table(f"{role.capitalize()}: linear", "Outliers", "Error", "Stored as")
    for name, linear in found.get("linears", {}).items():
        error = next(iter(linear["errors"].values()))  # of the part's own scheme
        scheme = widened.get(f"{name}.weight", "")
        table.add_row(name, f"{linear['outliers']:.1f}", f"{error:.1e}", Text(scheme, "bold yellow"))
    return table


def widened(role: str, found: Mapping[str, Any]) -> str:
    """Which linear layers of a part are stored wider than its scheme says, the first few by name."""
    names = [f"{name.removesuffix('.weight')} ({scheme})" for name, scheme in found["widened"].items()]
    more = f", and {len(names) - _NAMED} more (--explain)" if len(names) > _NAMED else ""
    return f"stored wider: {len(names)} layers of the {role}: {', '.join(names[:_NAMED])}{more}"


def worst(report: Report) -> str:
    """The comparison with the same weights that comes nearest to its bound, and what quantising costs."""
    bounded = [(row, measure) for row in report.rows for measure in row.tolerance]
    row, measure = max(bounded, key=lambda pair: _strain(*pair))
    text = f"{MEASURES[measure].lower()} {_measured(row, measure)} in {row.stage}"
    costs = [row.error["max_abs"] for row in report.rows if row.against == "fp32" and "max_abs" in row.error]
    return f"{text}; {_number(max(costs, key=_worse))} from fp32" if costs else text


def _strain(row: Row, measure: str) -> float:
    """How much of what is allowed was used: above 1 the row failed."""
    found, bound = row.error[measure], row.tolerance[measure]
    used, allowed = (found, bound) if measure == "max_abs" else (1 - found, 1 - bound)
    return _worse(used / allowed if allowed > 0 else used)


def _worse(value: float) -> float:
    """NaN loses every comparison: here it is worse than all."""
    return math.inf if math.isnan(value) else value


def _measured(row: Row, measure: str) -> str:
    if measure not in row.error:
        return ""
    found, bound = row.error[measure], row.tolerance.get(measure)
    if measure == "max_abs":
        return _number(found) if bound is None else f"{_number(found)} ≤ {_number(bound)}"
    return _share(found) if bound is None else f"{_share(found)} ≥ {_share(bound)}"


def _number(value: float) -> str:
    return f"{value:.2g}"


def _share(value: float) -> str:
    """Six digits, cut and not rounded: what is not 1 does not read as 1."""
    return f"{int((value + 1e-9) * 1e6) / 1e6:.6f}".rstrip("0").rstrip(".") if math.isfinite(value) else str(value)


def answer(found: Answer) -> str:
    """One line about an answer: what went in, when the first word came, how fast the rest."""
    times = found.timings
    parts = [
        f"{found.prompt_tokens} tokens in" + (f", {found.cached_tokens} remembered" if found.cached_tokens else "")
    ]
    parts.append(f"first word after {times.ttft_ms / 1000:.2f} s")
    parts.append(
        f"{found.generated_tokens} tokens out" + (f", {times.decode_tok_s:.1f}/s" if times.decode_tok_s else "")
    )
    ends = {"length": "cut off: -n gives more", "context": "the context is full"}
    return " · ".join([*parts, *filter(None, [ends.get(found.stop_reason)])])


def manifest(found: Manifest, trust: Mapping[str, str]) -> RenderableType:
    """`trust`: who signed it, and who vouches for it, in words."""
    facts = {
        "name": found.name,
        "made from": f"{found.source.get('name')}, sha256 {found.source.get('sha256', '')[:12]}…",
        "licence": found.license,
        "recipe": found.recipe,
        "size": format_size(sum(file.bytes for file in found.files())),
        **_model(found.spec),
        "versions": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
        **trust,
    }
    if not found.sees:
        facts["picture"] += "; no part here sees one"
    return Group(tables.facts(facts), "", _parts(found.parts), "", _files(found.files()))


def _model(spec: VLMSpec) -> dict[str, str]:
    image, prompt, decoder = spec.image, spec.prompt, spec.decoder
    padded = f"padded with RGB {' '.join(map(str, image.background))}"
    fit = {
        "pad": padded,
        "crop": "cropped to the centre",
        "stretch": "stretched to the square",
        "long_edge": f"stretched to the square from {image.long_edge} at the longer edge",
        "patches": "or as many pixels in its own ratio",
    }[image.fit]
    tiles = f" a view, {spec.most_views} views at most" if image.views else ""
    stops = [f"id {i}" for i in prompt.stop_ids] + [repr(s) for s in prompt.stop_strings]
    return {
        "picture": f"{image.size}×{image.size}, {fit}, {image.resample}; {prompt.image_tokens} rows{tiles}",
        "prompt": (prompt.user + shown(prompt.generation, {})).replace("\n", "\\n"),
        "stops at": ", ".join(stops),
        "decoder": f"{decoder.layers} layers, hidden {decoder.hidden}, {decoder.heads} heads of {decoder.head_dim} "
        f"({decoder.kv_heads} key-value), vocabulary {decoder.vocab}, context {decoder.context}",
    }


def _parts(parts: Iterable[Part]) -> Table:
    table = tables.table("Part", "Format", "Scheme", "Size", "Measured", right=("Size",))
    for part in parts:
        total = format_size(part.size)
        scheme = "\n".join((part.scheme, *_options(part.options)))
        measured = ["not proven: as it was published"] if part.adopted else _errors(part.error)
        table.add_row("+".join(part.covers), part.format, scheme, total, "\n".join(measured))
    return table


def _options(options: Mapping[str, Any]) -> list[str]:
    """One line for each; a flag is its name."""
    several = [(name, value if isinstance(value, list | tuple) else [value]) for name, value in options.items()]
    return [name if value is True else f"{name} {value}" for name, values in several for value in values]


def _errors(error: Mapping[str, float]) -> list[str]:
    """`vision.stored.max_abs` and its neighbours as one line a reference."""
    lines: dict[str, list[str]] = {}
    for key, value in error.items():
        where, _, measure = key.rpartition(".")
        shown = _number(value) if measure == "max_abs" else _share(value)
        lines.setdefault(where.replace(".", " / "), []).append(f"{measure} {shown}")
    return [f"{where}: {', '.join(found)}" if where else ", ".join(found) for where, found in lines.items()]


def _files(files: Iterable[File]) -> Table:
    table = tables.table("File", "Size", "sha256", right=("Size",))
    for file in files:
        table.add_row(file.path, format_size(file.bytes), f"{file.sha256[:12]}…")
    return table


def placements(found: Sequence[Placement]) -> RenderableType:
    """How many operations of each function run where, and why."""
    table = tables.table("Part", "Function", "Runs on", "Operations", "Why", right=("Operations",))
    for part in found:
        runs = Counter((op.function, op.processor, op.why) for op in part.operations)
        for (function, processor, why), count in sorted(runs.items()):
            on = f"{processor} (predicted)" if part.predicted else processor
            table.add_row("+".join(part.covers), function, on, str(count), why)
    return table


def devices(profiles: Sequence[DeviceProfile], here: DeviceProfile) -> RenderableType:
    """The profiles, and below them this machine."""
    table = tables.table("Id", "Device", "Memory", "Cores", "Recipe", right=("Memory", "Cores"))
    table.columns[0].no_wrap = True
    for profile in profiles:
        table.add_row(profile.id, profile.name, _memory(profile), str(profile.threads), profile.recipe)
    features = f", {' '.join(here.isa)}" if here.isa else ""
    about = f"{here.name}, {_memory(here)} free, {here.threads} cores{features}; recipe {here.recipe}"
    return Group(table, "", tables.facts({"this machine": about}))


def device(profile: DeviceProfile) -> RenderableType:
    """One, with every figure's source; what nobody read off a device is marked."""
    table = tables.table("Figure", "Value", "", "Source", right=("Value",))
    for name, found in profile.figures.items():
        for figure in found:
            value = " ".join(map(str, figure.value)) if isinstance(figure.value, list) else figure.value
            shown = "–" if value is None else f"{value} {figure.unit}".strip()
            table.add_row(name.replace("_", " "), shown, "estimate" if figure.estimate else "", figure.source)
    facts = {
        "id": f"{profile.id} (like {profile.recognised})" if profile.recognised else profile.id,
        "device": f"{profile.name}, {profile.kind}",
        "memory": f"{_memory(profile)} {'free' if profile.recognised else 'usable'}, {profile.threads} cores, "
        + " ".join(profile.isa),
        **{f"{role} on": ", ".join(names) for role, names in profile.engines.items()},
        "recipe": profile.recipe,
    }
    return Group(tables.facts(facts), "", table)


def fit(found: Fit) -> RenderableType:
    """Each prediction with what it assumes."""
    table = tables.table("Predicted", "", "Assuming", right=("",))
    for row in found.rows:
        table.add_row(row.name, _predicted(row), row.assumes)
    parts = [f"{'+'.join(c.part.covers)} {c.part.scheme} on {c.engine}" for c in found.plan.choices]
    parts = [
        f"{part} ({c.provider})" if c.provider != "cpu" else part
        for part, c in zip(parts, found.plan.choices, strict=True)
    ]
    verdict = f"{found.bundle} fits {found.device}, with a context of {found.plan.context}: "
    return Group(verdict + "; ".join(parts), "", table)


def compared(found: Mapping[str, Fit | EdgeError], best: str | None) -> RenderableType:
    """A device's recipes, and which of them answers first."""
    table = tables.table("Recipe", "Peak memory", "First token", "Decode", "", right=("Peak memory", "First token"))
    for name, one in found.items():
        if isinstance(one, EdgeError):
            table.add_row(name, "", "", "", one.message.partition("\n")[0])
            continue
        rows = {row.name: _predicted(row) for row in one.rows}
        figures = (rows[row] for row in ("peak memory, one answer", "first token", "decode"))
        table.add_row(name, *figures, "better, as predicted" if name == best else "")
    return Group("", table)


def fit_line(found: Fit) -> str:
    rows = [row for row in found.rows if row.name in ("peak memory, one answer", "first token", "decode")]
    return f"{found.device}: " + ", ".join(f"{row.name.split(',')[0]} {_predicted(row)}" for row in rows)


def _predicted(row: Prediction) -> str:
    if row.value is None:
        return "–"
    return format_size(row.value) if row.unit == "B" else f"{row.value:.{1 if row.value >= 10 else 2}f} {row.unit}"


def _memory(profile: DeviceProfile) -> str:
    return f"{profile.memory_bytes / 2**30:.1f} GiB"


def doctor(found: Diagnosis) -> RenderableType:
    facts = {
        "edge-vlm": f"{found.version}, Python {found.python}, {found.system}",
        "processor": f"{found.processor}, {found.cores} cores",
        "memory": f"{found.memory_bytes / 2**30:.1f} GiB free",
        "NVIDIA card": found.card or "no driver",
    }
    features = tables.table("Processor", "Here", "What it is for")
    for feature in found.features:
        features.add_row(feature.name, "yes" if feature.present else "no", feature.use)
    engines = tables.table("Engine", "Opens", "Version", "What to do")
    for engine in found.engines:
        state = ("not installed" if engine.todo else "unknown") if engine.version is None else engine.version
        engines.add_row(engine.name, ", ".join(engine.formats), state, engine.todo or "ready")
    lacks = ", ".join(found.export_lacks)
    engines.add_row("edge export", "", "", f"pip install 'edge-vlm[export]' (lacks {lacks})" if lacks else "ready")
    kernels = tables.table("Engine", "Kernels in use", "Known by")
    for engine in found.engines:
        if engine.kernels:
            kernels.add_row(engine.name, engine.kernels, engine.known_by or "")
    cards = tables.table("Engine", "Provider", "What to do")
    for engine in found.engines:
        for provider, why in engine.providers.items():
            cards.add_row(engine.name, provider, why or ("ready" if found.card else "ready, for a card"))
    shown: list[RenderableType] = [tables.facts(facts), "", features, "", engines, "", kernels]
    useful = found.card or any(not why for engine in found.engines for why in engine.providers.values())
    return Group(*shown, "", cards) if useful else Group(*shown)


def findings(found: Findings) -> RenderableType:
    """The files, and each row with what it costs below what was found."""
    table = tables.table("File", "Check", "", "Found")
    for row in found.rows:
        style = {"ok": "green", "wrong": "bold red"}.get(row.status, "yellow")
        verdict = Text(row.status.upper() if row.status == "wrong" else row.status, style)
        table.add_row(row.about, row.check, verdict, f"{row.found}\n→ {row.cost}" if row.cost else row.found)
    return Group(tables.facts(found.files), "", table)
