"""The tasks, one file each: a file's name is what `edge eval --task` takes. What all of them share is here."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import cast

from edge import plugins
from edge.errors import UsageError
from edge.evaluation.task import Task


def names() -> tuple[str, ...]:
    """Every task."""
    return plugins.names(__name__)


def find(name: str) -> Task:
    """Raises UsageError that names the nearest task."""
    if name not in names():
        near = difflib.get_close_matches(name.lower().replace("-", "_"), names(), 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"no task {name!r}, and no folder of this name", hint=f"{meant}one of: " + ", ".join(names()))
    return cast("Task", plugins.load(__name__, name))


def locate(name: str, data: Path) -> Path:
    """The task's folder: `data` itself, or one below it that a published layout names; of a task that is one table,
    `data` may be that. Raises UsageError where there is none, and where `data` holds what belongs to another task."""
    task = find(name)
    if data.is_file() and data.suffix == ".tsv" and any(data.match(mark) for mark in task.MARKS):
        return data
    if not data.is_dir():
        raise UsageError(f"no folder {str(data)!r}", hint=f"--data DIR is where the files of {task.TITLE} are")
    places = [data, *(data / folder for folder in task.FOLDERS)]
    found = next((place for place in places if marked(task, place)), None)
    if found is None and (others := holders(data)):
        raise UsageError(
            f"{str(data)!r} holds files of {' and '.join(others.values())}, and none of {task.TITLE}",
            hint=f"--task {next(iter(others))}, or --data with the folder of {task.TITLE}",
        )
    # Without any file of it, the task itself says which one it looked for.
    return found or next((place for place in places[1:] if place.is_dir()), data)


def holders(folder: Path) -> dict[str, str]:
    """The tasks whose files lie in a folder, each with its title; of several that share their files, the first."""
    found: dict[tuple[str, ...], str] = {}
    for name in names():
        if marked(task := find(name), folder):
            found.setdefault(task.MARKS, name)
    return {name: find(name).TITLE for name in found.values()}


def marked(task: Task, folder: Path) -> bool:
    """Whether a file by which the task is known lies there."""
    return any(next(folder.glob(mark), None) for mark in task.MARKS)
