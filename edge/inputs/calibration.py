"""Pictures and questions about them, to calibrate with or to ask: a folder with `prompts.jsonl`, which has one
`{"image", "question", "answer"}` a line."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from edge.errors import UsageError

PROMPTS = "prompts.jsonl"


@dataclass(frozen=True)
class Record:
    picture: Path
    question: str
    answer: str  # empty where none is known


def read(place: Path) -> list[Record]:
    """`place` is the folder, or a file of such lines. Raises UsageError that names the line which is off."""
    folder, file = (place.parent, place) if os.path.isfile(place) else (place, place / PROMPTS)
    hint = 'a line reads {"image": "images/cat.jpg", "question": "What is this?"}'
    if not file.is_file():
        raise UsageError(f"no {PROMPTS} in {str(folder)!r}", hint=hint)
    records = []
    for number, line in enumerate(_bytes(file).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            record = Record(folder / entry["image"], str(entry["question"]), str(entry.get("answer", "")))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(f"{file.name}, line {number}: {error!r}", hint=hint) from error
        if not os.path.isfile(record.picture):  # Path.is_file raises on a name that is too long
            raise UsageError(f"{file.name}, line {number}: no picture {entry['image']!r}", hint=hint)
        records.append(record)
    if not records:
        raise UsageError(f"{file.name} in {str(folder)!r} is empty", hint=hint)
    return records


def answered(place: Path) -> list[Record]:
    """Those whose answers are known. Raises UsageError as `read`, and where there are none."""
    found = [record for record in read(place) if record.answer.strip()]
    if not found:
        raise UsageError(
            f"no answers in {str(place)!r}",
            hint='a line reads {"image": "cat.jpg", "question": "What is this?", "answer": "A cat."}',
        )
    return found


def same(given: str, known: str) -> bool:
    """Whether an answer is right: letter by letter, but for the white space around it."""
    return given.strip() == known.strip()


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {str(file)!r}: {error.strerror}", hint="check who may read it") from error
