"""Results that were kept: read them, and see what became slower."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.bench import rows
from edge.bench.output import Json
from edge.bench.rows import SCHEMA, Row
from edge.errors import EdgeError

_NUMBERS = ("avg_ns", "avg_ts", "peak_bytes", "model_size", "bytes_per_token", "memory_limit_bytes", "energy_j")
_SPREADS = ("stddev_ns", "stddev_ts")


def write(path: Path, found: Iterable[Row]) -> None:
    """As `-o json`, beside its place and renamed: what was there before stays whole. Raises EdgeError."""
    writer = Json()
    text = writer.begin() + "".join(writer.row(row) for row in found) + writer.end()
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise EdgeError(f"cannot write {path}: {error.strerror}", hint="check the path, and the room there") from error


def read(path: Path) -> list[Row]:
    """Rows of `-o json`, `-o jsonl` or `--save`; llama-bench's own `-o json` and `-o jsonl`, too.

    Raises EdgeError on what is none, is damaged, or is newer than this reader.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise EdgeError(f"cannot read {path}: {error}", hint="edge bench BUNDLE --save FILE makes one") from error
    found = _parsed(path, text)
    if not found:
        raise EdgeError(f"{path} holds no results", hint="edge bench BUNDLE --save FILE makes one")
    return [_row(path, number, row) for number, row in enumerate(found, 1)]


def _parsed(path: Path, text: str) -> list[Any]:
    try:
        if text.lstrip().startswith("["):
            found: list[Any] = json.loads(text)
            return found
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise EdgeError(
            f"{path} is not what edge bench wrote: {error}", hint="it may be cut off: measure again with --save FILE"
        ) from error


def _row(path: Path, number: int, found: Any) -> Row:
    where = f"row {number} of {path}"
    row: Row = found if isinstance(found, dict) else {}
    if not row:
        raise EdgeError(f"{where} is no result", hint="edge bench BUNDLE --save FILE makes one")
    if "schema" not in row and "build_number" in row:
        row = {**row, "schema": SCHEMA, "test": _test_of_a_peer(row)}
    schema = row.get("schema")
    if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        raise EdgeError(
            f"{where} has schema {schema!r}; this edge-vlm reads up to {SCHEMA}",
            hint="pip install -U edge-vlm, or measure again",
        )
    texts = all(isinstance(row.get(name), str) for name in ("test", "model_type"))
    numbers = [row[name] for name in _NUMBERS if name in row]
    numbers += [row[name] for name in _SPREADS if row.get(name) is not None]
    if not texts or not all(map(_is_number, numbers)) or not (rows.value(row) or (0.0,))[0]:
        raise EdgeError(f"{where} is damaged", hint="measure again")
    return row


def _test_of_a_peer(row: Mapping[str, Any]) -> str:
    parts = [f"{name}{row[key]}" for name, key in (("pp", "n_prompt"), ("tg", "n_gen")) if row.get(key)]
    return "+".join(parts) + (f" @ d{row['n_depth']}" if row.get("n_depth") else "")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


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
