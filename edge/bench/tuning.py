"""Tuning: engines and numbers of threads measured on this machine, those that compute another model left out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from edge.bench import runner
from edge.bench.request import GENERATED, Request
from edge.bench.schema import Row
from edge.bundle.manifest import Bundle, Manifest
from edge.devices import DeviceProfile
from edge.engines import EngineInfo, opening
from edge.errors import EdgeError

REPETITIONS = 3


@dataclass(frozen=True)
class Candidate:
    engine: str | None  # None: the device's own order
    threads: int


@dataclass(frozen=True)
class Measured:
    """One candidate: the seconds of a first answer of 64 tokens once the bundle is loaded, or why it is none."""

    candidate: Candidate
    seconds: float | None
    why: str = ""


def candidates(
    manifest: Manifest,
    device: DeviceProfile,
    engines: Sequence[EngineInfo],
    logical: int = 0,
) -> list[Candidate]:
    """The device's own order first. `logical`: threads of the processor; 0 asks the system."""
    formats = {part.format for part in manifest.parts}
    able = [info.name for info in engines if any(info in opening(format, engines) for format in formats)]
    names = [None, *able] if len(able) > len(formats) else [None]  # as many: each part has one engine
    most = logical or os.cpu_count() or device.threads
    counts = dict.fromkeys(n for n in (device.threads, max(1, device.threads // 2), most) if n <= most)
    return [Candidate(name, count) for name in names for count in counts]


def tune(bundle: Bundle, found: Sequence[Candidate]) -> Iterator[Measured]:
    """Each candidate replays the golden sample, and is measured if it computes the model."""
    for candidate in found:
        request = Request(str(bundle.path), engine=candidate.engine, threads=candidate.threads, repetitions=REPETITIONS)
        try:
            yield _measured(candidate, request)
        except EdgeError as error:
            yield Measured(candidate, None, error.message)


def fastest(found: Sequence[Measured]) -> Measured | None:
    """None where no candidate computes the model."""
    right = [one for one in found if one.seconds is not None]
    return min(right, key=lambda one: one.seconds or 0.0) if right else None


def _measured(candidate: Candidate, request: Request) -> Measured:
    if not (report := runner.prove(request))["ok"]:
        stages = ", ".join(row["stage"] for row in report["rows"] if not row["ok"])
        return Measured(candidate, None, f"computes another model: {stages}")
    rows: list[Row] = []
    for row in runner.bench([replace(request, n_prompt=(0,))]):
        if isinstance(row, EdgeError):
            raise row
        rows.append(row)
    first = next(row["avg_ns"] for row in rows if row["test"].startswith("first token"))
    speed = next(row["avg_ts"] for row in rows if row["test"].startswith("tg"))
    return Measured(candidate, first / 1e9 + GENERATED / speed)
