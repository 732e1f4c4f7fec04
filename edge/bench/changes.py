"""What became slower, or larger, since results were kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from edge.bench import rows
from edge.bench.rows import Row
from edge.errors import EdgeError


@dataclass(frozen=True)
class Change:
    """One row then and now, in tokens per second, nanoseconds or bytes. `worse`: by how much, of then; below 0 better.
    `slower`: by more than was allowed, and than the two deviations explain."""

    what: str
    before: float
    now: float
    worse: float
    slower: bool


def compare(now: Sequence[Row], before: Sequence[Row], allowed: float) -> list[Change]:
    """The rows that both have: of the same model, engines, threads and test. `allowed` is a share: 0.05.

    Raises EdgeError when they have none.
    """
    known = dict(_keyed(before))
    changes = [_change(key, row, known[key], allowed) for key, row in _keyed(now) if key in known]
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


def _change(key: tuple[Any, ...], now: Row, before: Row, allowed: float) -> Change:
    (new, more_is_better), (old, _) = _value(now), _value(before)
    worse = (old - new if more_is_better else new - old) / old
    unit = "ts" if more_is_better else "ns"
    noise = math.hypot(*(row.get(f"stddev_{unit}") or 0.0 for row in (now, before))) * 2 / old
    what = f"{key[0]}, {key[1]}, {key[2]} threads: {key[4]}"
    return Change(what, old, new, worse, worse > max(allowed, noise))


def describe(change: Change) -> str:
    """One line."""
    verdict = "SLOWER" if change.slower else "slower" if change.worse > 0 else "faster"
    if change.what.endswith("memory"):
        verdict = {"SLOWER": "MORE", "slower": "more", "faster": "less"}[verdict]
    return f"{change.what}: {abs(change.worse):.1%} {verdict}"


def _value(row: Row) -> tuple[float, bool]:
    found = rows.value(row)
    assert found is not None  # a row without was refused
    return found
