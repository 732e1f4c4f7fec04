"""The file of answers (`edge eval -o`): JSON lines, the run first, then an answer a line, each written at once.

An interrupted run leaves whole lines, but for the last one: what is torn there is dropped, and asked again.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from edge.devices import whole_files
from edge.errors import EdgeError, UsageError

SCHEMA = 1
Stop = Literal["stop", "length", "context", "too long"]
_NEW = "name another file with -o, or remove this one"


@dataclass(frozen=True)
class Run:
    """What was asked, and of what: answers of one file all have the same."""

    task: str
    title: str  # of the task
    bundle: str  # its name, and the schemes of its parts
    bundle_sha256: str  # of its manifest, which holds the sums of all its files
    questions: int
    questions_sha256: str  # of all questions, not of a sample
    engines: str  # of its parts, with commas
    whole_groups: bool  # a group counts as one question, which is right only where all of it are
    edge_vlm: str


@dataclass(frozen=True)
class Line:
    """One answer. `seconds` from the call to the last token."""

    id: str
    image: str
    group: str
    text: str
    score: float
    stop: Stop  # `too long`: the prompt did not fit into the context, and counts as a wrong answer
    tokens: int
    seconds: float


class AnswersFile:
    """Answers as they come; each line is one write."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, line: Line) -> None:
        """Raises EdgeError."""
        write(self._path, asdict(line))


def resume(path: Path, run: Run) -> tuple[AnswersFile, list[Line]]:
    """The file of a run, new or gone on with, and the answers that it holds. Raises UsageError where it is another
    run's, or no such file."""
    content = _bytes(path) if path.exists() else b""
    first = _encoded(_header(run))
    if first.startswith(content):  # nothing, or less than its first line
        _replace(path, first)
        return AnswersFile(path), []
    whole = content[: content.rfind(b"\n") + 1]
    before, lines = _parsed(path, whole)
    _require_same(path, before, run)
    if whole != content:
        _replace(path, whole)
    return AnswersFile(path), lines


def read(path: Path) -> tuple[Run, list[Line]]:
    """What a run has answered so far. Raises UsageError."""
    if not path.is_file():
        raise UsageError(f"no file {str(path)!r}", hint="edge eval BUNDLE --task NAME -o FILE writes one")
    content = _bytes(path)
    return _parsed(path, content[: content.rfind(b"\n") + 1])


def write(path: Path, entry: dict[str, Any]) -> None:
    """Raises EdgeError."""
    line = _encoded(entry)
    try:
        with path.open("ab", buffering=0) as file:
            if file.write(line) != len(line):
                raise OSError("the disk is full")
    except OSError as error:
        raise EdgeError(f"cannot write {path}: {error}", hint="check the path, and the room there") from error


def _header(run: Run) -> dict[str, Any]:
    return {"edge_eval": SCHEMA, **asdict(run)}


def _encoded(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="check who may read it") from error


def _replace(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_files.aside(path) as beside:
            beside.write_bytes(content)
    except OSError as error:
        raise EdgeError(f"cannot write {path}: {error}", hint="check the path, and the room there") from error


def _parsed(path: Path, content: bytes) -> tuple[Run, list[Line]]:
    rows = content.split(b"\n")[:-1]
    head = _entry(path, 1, rows[0]) if rows else {}
    schema = head.pop("edge_eval", None)
    if type(schema) is not int:
        raise UsageError(f"{path} is not what edge eval writes", hint=_NEW)
    if schema != SCHEMA:
        raise UsageError(f"{path} has schema {schema}; this edge-vlm reads {SCHEMA}", hint="pip install -U edge-vlm")
    run: Run = _checked(path, 1, Run, head)
    lines = [_line(path, number, row) for number, row in enumerate(rows[1:], start=2)]
    if twice := [name for name, count in Counter(line.id for line in lines).items() if count > 1]:
        raise UsageError(f"{path} answers question {twice[0]} twice: did two runs write it?", hint=_NEW)
    return run, lines


def _line(path: Path, number: int, row: bytes) -> Line:
    line: Line = _checked(path, number, Line, _entry(path, number, row))
    if not (0 <= line.score <= 1 and 0 <= line.seconds < math.inf):
        raise UsageError(f"{path}, line {number}: score {line.score}, {line.seconds} s", hint=_NEW)
    return line


def _entry(path: Path, number: int, row: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"it holds {constant}")

    try:
        entry = json.loads(row, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}, line {number} is damaged: {error}", hint=_NEW) from error
    if not isinstance(entry, dict):
        raise UsageError(f"{path}, line {number} is no answer", hint=_NEW)
    return entry


_KINDS: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "Stop": str,
    "float": (int, float),
    "int": int,
    "bool": bool,
}


def _checked(path: Path, number: int, kind: Any, entry: dict[str, Any]) -> Any:
    """The dataclass of an entry with exactly its fields, each of its type."""
    wanted = {field.name: _KINDS[str(field.type)] for field in fields(kind)}
    if entry.keys() != wanted.keys() or not all(isinstance(entry[name], wanted[name]) for name in wanted):
        raise UsageError(f"{path}, line {number} is damaged: it has not the fields of an answer", hint=_NEW)
    return kind(**entry)


def _require_same(path: Path, before: Run, run: Run) -> None:
    facts = (
        ("task", before.task, run.task),
        ("bundle", f"{before.bundle}, sha256 {before.bundle_sha256}", f"{run.bundle}, sha256 {run.bundle_sha256}"),
        ("questions", f"sha256 {before.questions_sha256}", f"sha256 {run.questions_sha256}"),
        ("engines", before.engines, run.engines),
    )
    for what, old, new in facts:
        if old != new:
            raise UsageError(f"{path} holds answers of another run: {what} {old}, and not {new}", hint=_NEW)
