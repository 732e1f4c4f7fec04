"""A result row: the fields of llama.cpp's own benchmark under its names, and ours after them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

SCHEMA = 1  # of a row; a reader refuses a newer one
TOKENS = ("n_prompt", "n_gen", "n_depth")

Row = dict[str, Any]


def timed(samples: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> Row:
    """The row of one test's samples. Without a second sample there is no deviation: it is None."""
    counts = {name: samples[0].get(name, 0) for name in TOKENS}
    ns = [sample["ns"] for sample in samples]
    row: Row = {"test": samples[0]["test"], **facts, **counts, **_spread("ns", ns, whole=True)}
    if tokens := counts["n_prompt"] + counts["n_gen"]:
        row.update(_spread("ts", [1e9 * tokens / value for value in ns]))
    if "stages_ns" in samples[0]:
        names = samples[0]["stages_ns"]
        row["stages_ns"] = {name: round(statistics.fmean(s["stages_ns"][name] for s in samples)) for name in names}
    if "right" in samples[0]:
        row["accuracy"] = statistics.fmean(sample["right"] for sample in samples)
    return row


def memory(peak: int, facts: Mapping[str, Any], test: str = "peak memory") -> Row:
    return {"test": test, **facts, **dict.fromkeys(TOKENS, 0), "peak_bytes": peak}


def sustained(test: str, windows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> Row:
    """Speed over time: `first_ts` of the first tenth of the windows, `steady_ts` of the last third, and all of them."""
    speeds: list[float] = [window["ts"] for window in windows]
    first, steady = speeds[: max(1, len(speeds) // 10)], speeds[-max(1, len(speeds) // 3) :]
    means = {"first_ts": statistics.fmean(first), "steady_ts": statistics.fmean(steady)}
    row = {"test": test, **facts, **dict.fromkeys(TOKENS, 0), **_spread("ts", speeds)}
    return {**row, "sustained": {**means, "windows": list(windows)}}


def judged_by(row: Mapping[str, Any]) -> tuple[float, bool] | None:
    """The number that a row is compared by, and whether more is better."""
    for name, more in (("avg_ts", True), ("avg_ns", False), ("peak_bytes", False)):
        if row.get(name) is not None:
            return float(row[name]), more
    return None


def roofline(row: Mapping[str, Any], bandwidth: float | None = None) -> float | None:
    """Tokens per second of decoding at which the weights alone would fill the memory's bandwidth: the row's own, else
    the one given, in bytes per second."""
    bandwidth, traffic = row.get("bandwidth") or bandwidth, row.get("bytes_per_token")
    return bandwidth / traffic if bandwidth and traffic and row.get("n_gen") else None


def _spread(unit: str, samples: Sequence[float], *, whole: bool = False) -> Row:
    mean: float = statistics.fmean(samples)
    deviation: float | None = statistics.stdev(samples) if len(samples) > 1 else None
    if whole:
        mean, deviation = round(mean), None if deviation is None else round(deviation)
    return {f"avg_{unit}": mean, f"stddev_{unit}": deviation, f"samples_{unit}": list(samples)}
