"""Rows of results, gathered by what was measured together: one run for each bundle, device, engines and threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge.bench.schema import Row, roofline

STAGES = ("picture", "vision", "prefill", "rest")


@dataclass
class Run:
    label: str
    device: str
    rows: list[Row] = field(default_factory=list)
    bandwidth: float | None = None  # bytes per second

    def test(self, name: str) -> Row | None:
        return next((row for row in self.rows if row["test"] == name), None)

    def stages(self) -> dict[str, float] | None:
        """Seconds of each stage until the first token; `rest` is what the stages do not name."""
        row = self.test("first token")
        if row is None or "stages_ns" not in row:
            return None
        found = {name: row["stages_ns"].get(name, 0) / 1e9 for name in STAGES[:-1]}
        return {**found, "rest": max(0.0, row["avg_ns"] / 1e9 - sum(found.values()))}

    def decoding(self) -> list[Row]:
        return [row for row in self.rows if row["test"].startswith("tg")]

    def roofline(self, row: Row) -> float | None:
        """Tokens per second that the memory's bandwidth allows."""
        return roofline(row, self.bandwidth)

    def memory(self) -> tuple[float, float | None] | None:
        """Peak, and what was free when it began, in bytes."""
        row = self.test("peak memory")
        return None if row is None else (row["peak_bytes"], row.get("memory_limit_bytes"))

    def sustained(self) -> Row | None:
        return next((row for row in self.rows if "sustained" in row), None)

    def warnings(self) -> list[str]:
        """The last of each kind."""
        return list({w.partition(":")[0]: w for row in self.rows for w in row.get("warnings", ())}.values())


def gather(results: Mapping[str, Sequence[Row]], bandwidth: float | None = None) -> list[Run]:
    runs: dict[tuple[object, ...], Run] = {}
    for file, rows in results.items():
        for row in rows:
            names = ("device", "model_filename", "model_type", "backends", "n_threads", "type_k")
            key = (file, *(row.get(name) for name in names))
            if key not in runs:
                runs[key] = Run(_label(row), str(row.get("device", row.get("cpu_info", ""))))
                runs[key].bandwidth = row.get("bandwidth") or bandwidth
            runs[key].rows.append(row)
    _tell_apart(list(runs.values()), [str(key[0]) for key in runs])
    return list(runs.values())


def _label(row: Row) -> str:
    engines = str(row.get("backends", "")).replace(",", "+")
    threads = f"{row['n_threads']} thread{'s' * (row['n_threads'] != 1)}" if "n_threads" in row else ""
    cache = f"cache {row['type_k']}" if "type_k" in row and row["type_k"] != "f16" else ""
    return " · ".join(filter(None, [row["model_type"], engines, threads, cache]))


def _tell_apart(runs: Sequence[Run], files: Sequence[str]) -> None:
    """Labels that are the same get what differs: the device, the bundle's folder, the file, a number."""
    folders = [Path(str(run.rows[0].get("model_filename", ""))).name for run in runs]
    for words in ([run.device for run in runs], folders, [Path(file).stem for file in files]):
        alike: dict[str, set[str]] = {}
        for run, word in zip(runs, words, strict=True):
            alike.setdefault(run.label, set()).add(word)
        for run, word in zip(runs, words, strict=True):
            if len(alike[run.label]) > 1:
                run.label += f" · {word}"
    counts = Counter(run.label for run in runs)
    for number, run in enumerate(runs, 1):
        if counts[run.label] > 1:
            run.label += f" · {number}"
