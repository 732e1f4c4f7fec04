"""Benchmark results compared with saved ones: what became slower, larger, or less accurate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edge.bench.schema import Row, judged_by
from edge.errors import EdgeError

POINTS = 0.01  # of accuracy that may be lost: what the answers of another build of the same model may differ by
RIGHT = "right answers"


@dataclass(frozen=True)
class Change:
    """One row then and now, in tokens per second, nanoseconds, bytes, or the share of right answers. `worse`: by how
    much, of then; below 0 better. `failed`: by more than was allowed, and than the two deviations explain."""

    what: str
    before: float
    now: float
    worse: float
    failed: bool


def compare(now: Sequence[Row], before: Sequence[Row], allowed: float) -> list[Change]:
    """The rows that both have: of the same model, engines, threads and test. `allowed` is a share: 0.05; of accuracy it
    is a point.

    Raises EdgeError when they have none.
    """
    known = dict(_keyed(before))
    changes = [change for key, row in _keyed(now) if key in known for change in _changes(key, row, known[key], allowed)]
    if not changes:
        raise EdgeError(
            "there is nothing to compare: no row is of the same model, engines, threads and test",
            hint="measure the same bundle with the same -p, -n, -d and -t",
        )
    return changes


def _keyed(found: Iterable[Row]) -> Iterable[tuple[tuple[Any, ...], Row]]:
    """Bundles may lie elsewhere now: of several that look the same, the first is taken for the first."""
    seen: Counter[tuple[Any, ...]] = Counter()
    for row in found:
        key = tuple(row.get(name) for name in ("model_type", "backends", "n_threads", "type_k", "test"))
        yield (*key, seen[key]), row
        seen[key] += 1


def _changes(key: tuple[Any, ...], now: Row, before: Row, allowed: float) -> Iterator[Change]:
    (new, more_is_better), (old, _) = _value(now), _value(before)
    worse = (old - new if more_is_better else new - old) / old
    unit = "ts" if more_is_better else "ns"
    noise = math.hypot(*(row.get(f"stddev_{unit}") or 0.0 for row in (now, before))) * 2 / old
    what = f"{key[0]}, {key[1]}, {key[2]} threads: {key[4]}"
    yield Change(what, old, new, worse, not worse <= max(allowed, noise))  # so that NaN fails
    if "accuracy" in now and "accuracy" in before:
        new, old = now["accuracy"], before["accuracy"]
        yield Change(f"{what}, {RIGHT}", old, new, (old - new) / (old or 1), not old - new <= POINTS)


def describe(change: Change) -> str:
    """One line."""
    better, worse, by = "faster", "slower", f"{abs(change.worse):.1%}"
    if change.what.endswith("memory"):
        better, worse = "less", "more"
    elif change.what.endswith(RIGHT):
        better, worse, by = "no fewer", "fewer", f"{change.now:.1%} after {change.before:.1%}"
    return f"{change.what}: {by} {worse.upper() if change.failed else worse if change.worse > 0 else better}"


def _value(row: Row) -> tuple[float, bool]:
    found = judged_by(row)
    assert found is not None  # a row without was refused
    return found
