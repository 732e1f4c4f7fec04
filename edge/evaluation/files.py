"""Official files: where they lie in the published layouts, and JSON of them whose faults are named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edge.errors import UsageError
from edge.evaluation.task import Question

T = TypeVar("T")
_FAULTS = (KeyError, TypeError, ValueError, AttributeError, IndexError)


@dataclass(frozen=True)
class Official:
    """A file or folder that a task needs."""

    name: str
    source: str  # who publishes it, and under which name
    places: tuple[str, ...] = ("",)  # folders below the task's, in the published layouts


def find(root: Path, wanted: Official) -> Path:
    """Raises UsageError that says which file, where it is expected, and what its source calls it."""
    for place in wanted.places:
        if (path := root / place / wanted.name).exists():
            return path
    expected = " or ".join(str(root / place / wanted.name) for place in wanted.places)
    raise UsageError(f"no {wanted.name}: expected at {expected}", hint=f"it is {wanted.source}")


def text(path: Path) -> str:
    """Raises UsageError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> UsageError:
    return UsageError(f"cannot read {str(path)!r}: {error}", hint="download it again, or check who may read it")


def parsed(content: str, where: str) -> Any:
    """JSON without NaN and infinity. Raises UsageError."""
    try:
        return json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        hint = "it may be cut off or edited: download it again"
        raise UsageError(f"{where} is not the JSON that was published: {error}", hint=hint) from error


def load(path: Path) -> Any:
    """One JSON document. Raises UsageError."""
    return parsed(text(path), str(path))


def lines(path: Path) -> list[Any]:
    """One JSON document a line. Raises UsageError."""
    numbered = enumerate(text(path).split("\n"), start=1)
    return [parsed(line, f"{path}, line {number}") for number, line in numbered if line.strip()]


def each(path: Path, entries: Iterable[tuple[object, Any]], build: Callable[[Any], T]) -> list[T]:
    """`build` of every entry; what it stumbles over becomes UsageError that names the entry."""
    found = []
    for name, entry in entries:
        try:
            found.append(build(entry))
        except _FAULTS as error:
            missing = f"has no {error}" if isinstance(error, KeyError) else f"is not as published: {error}"
            raise UsageError(f"{path}, entry {name} {missing}", hint="is it the official file, unedited?") from error
    return found


def member(path: Path, document: Any, name: str, kind: type[T]) -> T:
    """A member of a document that is an object. Raises UsageError."""
    found = document.get(name) if isinstance(document, Mapping) else None
    if not isinstance(found, kind):
        raise UsageError(f"{path} has no {name!r}", hint="is it the official file, unedited?")
    return found


def string(entry: Mapping[str, Any], name: str) -> str:
    """A member that is text; for `each`."""
    value = entry[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}")
    return value


def require_images(questions: Sequence[Question], title: str) -> None:
    """Raises UsageError that counts the images which are not there, and names the first."""
    paths = dict.fromkeys(question.image for question in questions if isinstance(question.image, Path))
    if missing := [path for path in paths if not path.is_file()]:
        raise UsageError(
            f"{len(missing)} of {len(paths)} images of {title} are missing; the first is {str(missing[0])!r}",
            hint="unpack the whole archive of images",
        )


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")
