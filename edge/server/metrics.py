"""Counts and times for Prometheus, in its text format."""

from __future__ import annotations

import sys
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping
from pathlib import Path

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Written by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[Labels, float]] = {}
        self._times: dict[str, tuple[list[int], float]] = {}
        self._gauges: dict[str, Callable[[], float]] = {"process_resident_memory_bytes": resident_bytes}

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        with self._lock:
            found = self._counts.setdefault(name, {})
            key = tuple(sorted(labels.items()))
            found[key] = found.get(key, 0) + by

    def time(self, name: str, seconds: float) -> None:
        with self._lock:
            buckets, total = self._times.get(name) or ([0] * (len(_SECONDS) + 1), 0.0)
            buckets[bisect_left(_SECONDS, seconds)] += 1
            self._times[name] = (buckets, total + seconds)

    def gauge(self, name: str, value: Callable[[], float]) -> None:
        """Asked whenever the metrics are read."""
        self._gauges[name] = value

    def text(self) -> str:
        with self._lock:
            lines = [line for name in sorted(self._counts) for line in _counter(name, self._counts[name])]
            lines += [line for name in sorted(self._times) for line in _histogram(name, *self._times[name])]
        for name, value in sorted(self._gauges.items()):
            lines += [f"# TYPE {name} gauge", f"{name} {value():g}" if value() < 1e6 else f"{name} {int(value())}"]
        return "\n".join(lines) + "\n"


def resident_bytes() -> float:
    """0 where the system does not say."""
    if sys.platform != "linux":
        return 0.0
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    import resource

    return float(int(pages) * resource.getpagesize())


def _counter(name: str, values: Mapping[Labels, float]) -> list[str]:
    return [f"# TYPE {name} counter"] + [f"{name}{_labels(key)} {value:.15g}" for key, value in sorted(values.items())]


def _histogram(name: str, buckets: list[int], total: float) -> list[str]:
    lines, so_far = [f"# TYPE {name} histogram"], 0
    for limit, count in zip((*map(str, _SECONDS), "+Inf"), buckets, strict=True):
        so_far += count
        lines.append(f'{name}_bucket{{le="{limit}"}} {so_far}')
    return [*lines, f"{name}_sum {total:.9g}", f"{name}_count {so_far}"]


def _labels(labels: Labels) -> str:
    """The values are ours: names of endpoints and models, without quotes or line ends."""
    return "{" + ",".join(f'{key}="{value}"' for key, value in labels) + "}" if labels else ""
