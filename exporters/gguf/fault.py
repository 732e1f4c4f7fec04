"""A row of a diagnosis, with the change to its file that would make it right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edge.formats.gguf import GGUF, GGUFArray
from edge.formats.gguf_report import Finding

Value = str | bool | tuple[int, ...] | tuple[float, ...]


@dataclass(frozen=True)
class Change:
    """Of a file: settings to write, tensors to name otherwise, and whether the positions are rolled by one row."""

    settings: Mapping[str, Value] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    rolled: bool = False

    def __or__(self, other: Change) -> Change:
        return Change({**self.settings, **other.settings}, {**self.names, **other.names}, self.rolled or other.rolled)


@dataclass(frozen=True)
class Row:
    finding: Finding
    change: Change | None = None


class Rows(list[Row]):
    """The rows about one file."""

    def __init__(self, about: str) -> None:
        super().__init__()
        self._about = about

    def ok(self, check: str, found: str) -> None:
        self._add("ok", check, found, "", None)

    def warning(self, check: str, found: str, cost: str, change: Change | None = None) -> None:
        self._add("warning", check, found, cost, change)

    def wrong(self, check: str, found: str, cost: str, change: Change | None = None) -> None:
        self._add("wrong", check, found, cost, change)

    def _add(
        self, status: Literal["ok", "warning", "wrong"], check: str, found: str, cost: str, change: Change | None
    ) -> None:
        self.append(Row(Finding(self._about, check, status, found, cost, change is not None), change))


def whole(file: GGUF, key: str) -> int:
    """A setting that counts something; 0 where it is missing or does not."""
    value = file.settings.get(key)
    return value if type(value) is int and 0 < value < 1 << 31 else 0


def values(file: GGUF, key: str) -> tuple[Any, ...]:
    """The values of a list; empty where it is missing or no list."""
    value = file.settings.get(key)
    return value.values or () if isinstance(value, GGUFArray) else ()


def shape(file: GGUF, name: str) -> tuple[int, ...]:
    """Of a tensor, the innermost axis first; empty where it is missing."""
    return file.tensors[name].shape if name in file.tensors else ()


def listed(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
