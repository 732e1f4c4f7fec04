"""Findings about GGUF files: what is right, what is wrong, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Finding:
    about: str  # the role of the file
    check: str
    status: Literal["ok", "warning", "wrong"]
    found: str
    cost: str = ""  # to the user, and how to avoid it
    repairable: bool = False


@dataclass(frozen=True)
class Findings:
    files: Mapping[str, str]  # role -> name, and what it is
    rows: tuple[Finding, ...]
    written: tuple[str, ...] = ()  # corrected copies

    @property
    def ok(self) -> bool:
        return all(row.status != "wrong" for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}
