"""Result files (JSON): written whole, and every field checked when they are read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edge.bench.output import Json
from edge.bench.schema import SCHEMA, Row, judged_by
from edge.devices import whole_files
from edge.errors import EdgeError

_TEXTS = ("cpu_info", "device", "backends", "model_filename", "recipe", "test_time", "type_k", "type_v")
_NUMBERS = (
    *("avg_ns", "avg_ts", "peak_bytes", "model_size", "n_threads", "n_prompt", "n_gen", "n_depth", "bytes_per_token"),
    *("bandwidth", "memory_limit_bytes", "agreement_tokens", "accuracy", "energy_j", "temp_c", "clock_mhz"),
    *("n_gpu_layers", "card_bytes", "card_energy_j", "card_temp_c", "card_clock_mhz"),
)
_MOST = 1e30  # of any number: what is larger was not measured
_MOST_BYTES = 1 << 24  # of a file: tens of thousands of rows
_JUDGED = {"tg": "avg_ts", "pp": "avg_ts", "peak memory": "peak_bytes", "first token": "avg_ns"}


def write(path: Path, found: Iterable[Row]) -> None:
    """As `-o json`, beside its place and renamed: what was there before stays whole. Raises EdgeError."""
    writer = Json()
    text = writer.begin() + "".join(writer.row(row) for row in found) + writer.end()
    try:
        with whole_files.aside(path) as beside:
            beside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EdgeError(f"cannot write {path}: {error.strerror}", hint="check the path, and the room there") from error


def read(path: Path) -> list[Row]:
    """Rows of `-o json`, `-o jsonl` or `--save`; llama.cpp's own benchmark's, too.

    Raises EdgeError on what is none, is damaged, or is newer than this reader.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise EdgeError(f"cannot read {path}: {error}", hint="edge bench BUNDLE --save FILE makes one") from error
    found = _parsed(path, text)
    if not found:
        raise EdgeError(f"{path} holds no results", hint="edge bench BUNDLE --save FILE makes one")
    return [require(row, f"row {number} of {path}") for number, row in enumerate(found, 1)]


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


def require(found: Any, where: str) -> Row:
    """One row that somebody else wrote. Raises EdgeError on what is none."""
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
    try:
        whole = _whole(row)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError):  # of another type altogether
        whole = False
    if not whole:
        raise EdgeError(f"{where} is damaged", hint="measure again")
    return row


def _whole(row: Row) -> bool:
    """Whether each field that something here reads is what it is meant to be."""
    if not all(isinstance(row.get(name), str) for name in ("test", "model_type")):
        return False
    needed = [name for start, name in _JUDGED.items() if row["test"].startswith(start) and name not in row]
    spreads = all(row.get(name) is None or _is_number(row[name]) for name in ("stddev_ns", "stddev_ts"))
    cosine = row.get("agreement_cosine", 0.0)
    return (
        not needed
        and spreads
        and (judged_by(row) or (0.0,))[0] > 0
        and all(isinstance(row[name], str) for name in _TEXTS if name in row)
        and all(_is_number(row[name]) for name in _NUMBERS if name in row)
        and (_is_number(cosine) or _is_number(-cosine))
        and all(_is_number(value) for value in row.get("stages_ns", {}).values())
        and all(isinstance(word, str) for word in row.get("kernels", {}).values())
        and all(isinstance(word, str) for name in ("warnings", "providers") for word in row.get(name, ()))
        and ("sustained" not in row or _lasted(row["sustained"]))
    )


def _lasted(found: dict[str, Any]) -> bool:
    windows = found["windows"]
    points = [value for window in windows for value in (window["t_s"], window["ts"], *window.values())]
    return bool(windows) and found["first_ts"] > 0 and all(map(_is_number, (found["steady_ts"], *points)))


def _test_of_a_peer(row: Mapping[str, Any]) -> str:
    parts = [f"{name}{row[key]}" for name, key in (("pp", "n_prompt"), ("tg", "n_gen")) if row.get(key)]
    return "+".join(parts) + (f" @ d{row['n_depth']}" if row.get("n_depth") else "")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MOST
