"""Writers of result rows, one at a time as they come: Markdown, JSON, JSON lines, CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from edge.bench.schema import Row, roofline

FIELDS = (  # those of llama.cpp's own benchmark first
    *("build_commit", "cpu_info", "backends", "model_filename", "model_type", "model_size", "n_threads"),
    *("type_k", "type_v", "n_prompt", "n_gen", "n_depth", "test_time"),
    *("avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts"),
    *("schema", "test", "device", "kernels", "recipe", "context", "prompt_tokens", "image_tokens", "stages_ns"),
    *("peak_bytes", "memory_limit_bytes", "bytes_per_token", "bandwidth", "agreement_tokens", "agreement_cosine"),
    "accuracy",
    *("energy_j", "temp_c", "clock_mhz", "sustained", "warnings"),
    *("providers", "n_gpu_layers", "card_bytes", "card_energy_j", "card_temp_c", "card_clock_mhz"),
)


class Writer(Protocol):
    """Each gives the text to print, line end and all."""

    def begin(self) -> str: ...

    def row(self, row: Row) -> str: ...

    def end(self) -> str: ...


class Json:
    """An array, as llama.cpp's own benchmark writes it. It is whole only after `end`."""

    def __init__(self) -> None:
        self._rows = 0

    def begin(self) -> str:
        return "["

    def row(self, row: Row) -> str:
        self._rows += 1
        return ("," if self._rows > 1 else "") + "\n " + json.dumps(ordered(row), ensure_ascii=False)

    def end(self) -> str:
        return "\n]\n"


class JsonLines:
    def begin(self) -> str:
        return ""

    def row(self, row: Row) -> str:
        return json.dumps(ordered(row), ensure_ascii=False) + "\n"

    def end(self) -> str:
        return ""


class Csv:
    """What is no plain value is JSON within its cell; what is unknown is empty."""

    def begin(self) -> str:
        return _csv_line(FIELDS)

    def row(self, row: Row) -> str:
        return _csv_line([_cell(row.get(name)) for name in FIELDS])

    def end(self) -> str:
        return ""


class Markdown:
    """The columns of llama.cpp's own benchmark, and ours: tokens per second that the memory's bandwidth allows,
    milliseconds, megabytes, joules, quality."""

    def begin(self) -> str:
        titles = _line([_fit(name, width) for name, (width, _) in self.columns().items()])
        rules = _line(["-" * (abs(width) - 1) + (":" if width > 0 else "-") for width, _ in self.columns().values()])
        return titles + rules

    def row(self, row: Row) -> str:
        return _line([_fit(text(row).replace("|", "\\|"), width) for width, text in self.columns().values()])

    def columns(self) -> dict[str, Column]:
        return COLUMNS

    def end(self) -> str:
        return ""


class Hosts(Markdown):
    """The same of several machines."""

    def columns(self) -> dict[str, Column]:
        return {"host": (-20, lambda row: str(row.get("host", ""))), **COLUMNS}


WRITERS: Mapping[str, Callable[[], Writer]] = {"md": Markdown, "json": Json, "jsonl": JsonLines, "csv": Csv}


def ordered(row: Row) -> Row:
    """The fields in the order of FIELDS; whatever else somebody added comes last."""
    return {name: row[name] for name in (*FIELDS, *row) if name in row}


def measured(row: Mapping[str, Any], unit: str, scale: float = 1.0) -> str:
    """`avg ± stddev`; nothing where it was not measured, and no deviation of one repetition."""
    mean, deviation = row.get(f"avg_{unit}"), row.get(f"stddev_{unit}")
    if mean is None:
        return ""
    digits = 2 if mean * scale >= 1 else 4
    return f"{mean * scale:.{digits}f}" + ("" if deviation is None else f" ± {deviation * scale:.{digits}f}")


def quality(row: Mapping[str, Any]) -> str:
    """The share of questions that were answered right; else of golden's greedy tokens the share that is equal, and the
    cosine of the logits before them."""
    if "accuracy" in row:
        return f"{row['accuracy']:.1%} right"
    tokens, cosine = row.get("agreement_tokens"), row.get("agreement_cosine")
    return " ".join([*([] if tokens is None else [f"{tokens:.0%}"]), *([] if cosine is None else [f"{cosine:.4f}"])])


def _scaled(name: str, scale: float, digits: int) -> Callable[[Row], str]:
    return lambda row: "" if row.get(name) is None else f"{row[name] * scale:.{digits}f}"


def _bound(row: Row) -> str:
    bound = roofline(row)
    return "" if bound is None else f"{bound:.2f}"


Column = tuple[int, Callable[[Row], str]]
COLUMNS: dict[str, Column] = {  # width, negative on the left; text
    "model": (-30, lambda row: str(row["model_type"])),
    "size": (10, lambda row: f"{row['model_size'] / 2**20:.2f} MiB"),
    "backend": (-20, lambda row: str(row.get("backends", ""))),
    "threads": (7, lambda row: str(row.get("n_threads", ""))),
    "test": (-18, lambda row: str(row["test"])),
    "t/s": (16, lambda row: measured(row, "ts")),
    "roofline": (8, _bound),
    "ms": (18, lambda row: measured(row, "ns", 1e-6)),
    "MB": (8, _scaled("peak_bytes", 1e-6, 1)),
    "J": (6, _scaled("energy_j", 1.0, 2)),
    "quality": (11, quality),
}


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"


def _fit(text: str, width: int) -> str:
    return text.rjust(width) if width > 0 else text.ljust(-width)


def _csv_line(cells: Any) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _cell(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
