"""MMBench, dev split. Y. Liu et al., MMBench: Is Your Multi-modal Model an All-around Player? (2023).

Circular: a question counts where it is answered right in every rotation of its options; vanilla: in the first one. The
option is read by the rules of the authors' toolkit for exact matching; a language model is never asked.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from edge.errors import UsageError
from edge.evaluation import files
from edge.evaluation.metrics import share
from edge.evaluation.options import chosen
from edge.evaluation.task import LETTER, Metric, Question, Scored

TITLE = "MMBench"
FOLDERS = ("mmbench", "MMBench", "mmbench_cn")
MARKS = ("mmbench*.tsv", "MMBench*.tsv")
MAX_TOKENS = 1024
WHOLE_GROUPS = True
LETTERS = ("A", "B", "C", "D")
ROTATION = 1_000_000  # a question's rotations have its index and a multiple of this
_COLUMNS = ("index", "question", "image", "answer", *LETTERS)
_SOURCE = "mmbench_dev_20230712.tsv, or a later MMBench_DEV_*.tsv, of github.com/open-compass/MMBench"
_LETTER_CHINESE = "请直接回答选项字母。"
_LONGEST = 2**31 - 1  # characters of a field: images are longer than csv allows unasked
_REFERENCE = 64  # characters; an image as short is the index of the row that holds it
# What the published evaluation's reader of tables takes for an empty field.
_EMPTY = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL"),
    *("NaN", "None", "n/a", "nan", "null", "-NaN", "-nan"),
}
Row = Mapping[str, str]


def read(root: Path) -> list[Question]:
    path = root if root.is_file() else _table(root)
    rows = _rows(path)
    images = _images(path, rows)
    ask = _LETTER_CHINESE if "_cn" in path.name.lower() else LETTER
    named = [(row["index"], row) for row in rows]

    def turned(by: int) -> list[Question]:
        return files.each(path, named, lambda row: _question(row, images[row["index"]], ask, by))

    questions = turned(0)
    if any(question.id != question.group for question in questions):
        return questions
    # A table without rotations: they are made as those of the others were.
    made = [one for by in range(1, len(LETTERS)) for one in turned(by) if by < len(one.options)]
    return [*questions, *made]


def _table(root: Path) -> Path:
    found = sorted({path for mark in MARKS for path in root.glob(mark)})
    if not found:
        raise UsageError(f"no table of MMBench: expected at {root}/mmbench_dev_20230712.tsv", hint=f"it is {_SOURCE}")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UsageError(f"several tables in {str(root)!r}: {names}", hint=f"--data {found[0]}")
    return found[0]


def _rows(path: Path) -> list[Row]:
    before = csv.field_size_limit(_LONGEST)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            found: list[Row] = list(reader)
            columns = reader.fieldnames or []
    except (OSError, ValueError) as error:
        raise files.unreadable(path, error) from error
    finally:
        csv.field_size_limit(before)
    if lacking := [column for column in _COLUMNS if column not in columns]:
        hint = "a test split has no answers: take the dev split" if lacking == ["answer"] else f"it is {_SOURCE}"
        raise UsageError(f"{path} has no column {', '.join(lacking)}", hint=hint)
    for number, row in enumerate(found, start=1):
        if None in row or None in row.values():
            raise UsageError(
                f"{path}, row {number} has not {len(columns)} fields", hint="it may be cut off: download it again"
            )
    return found


def _images(path: Path, rows: Sequence[Row]) -> dict[str, bytes]:
    """Every row's image by its index; equal ones are one object."""
    written = {row["index"]: row["image"] for row in rows}
    decoded: dict[str, bytes] = {}

    def image(row: Row) -> tuple[str, bytes]:
        text = row["image"] if len(row["image"]) > _REFERENCE else written.get(row["image"], "")
        if len(text) <= _REFERENCE:
            raise ValueError(f"its image is {row['image']!r}: neither base64 nor another row's index")
        if text not in decoded:
            try:
                decoded[text] = base64.b64decode(text, validate=True)
            except binascii.Error as error:
                raise ValueError(f"its image is broken base64: {error}") from error
        return row["index"], decoded[text]

    return dict(files.each(path, ((row["index"], row) for row in rows), image))


def _question(row: Row, image: bytes, ask: str, turned: int = 0) -> Question:
    """`turned`: by how many places the options move up, the first ones to the end."""
    number = int(row["index"])
    options = [row[letter] for letter in takewhile(lambda letter: not _is_empty(row[letter]), LETTERS)]
    if row["answer"] not in LETTERS[: len(options)]:
        raise ValueError(f"its answer is {row['answer']!r}, of {len(options)} options")
    right = LETTERS[(LETTERS.index(row["answer"]) - turned) % len(options)]
    options = options[turned:] + options[:turned]
    hint = row.get("hint", "")
    asked = row["question"] if _is_empty(hint) else f"{hint}\n{row['question']}"
    written = (f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return Question(
        id=str(number + turned * ROTATION),
        prompt="\n".join((asked, *written, ask)),
        image=image,
        image_id=hashlib.sha256(image).hexdigest()[:16],
        truth=(right,),
        options=tuple(options),
        part=row.get("l2-category") or row.get("category") or "",
        group=str(number % ROTATION),
    )


def _is_empty(text: str) -> bool:
    return text in _EMPTY or text.lower() in ("nan", "none")


def score(question: Question, text: str) -> float:
    return float(chosen(text, dict(zip(LETTERS, question.options, strict=False))) == question.truth[0])


def metrics(scored: Sequence[Scored]) -> list[Metric]:
    groups: dict[str, list[Scored]] = {}
    for one in scored:
        groups.setdefault(one.question.group, []).append(one)
    first = [one for one in scored if one.question.id == one.question.group]
    parts = dict.fromkeys(sorted({one.question.part for one in scored} - {""}))
    return [
        *share("circular accuracy", [_all_right(group) for group in groups.values()]),
        *share("vanilla accuracy", [one.score == 1 for one in first]),
        *(
            metric
            for part in parts
            for metric in share(
                "circular accuracy",
                [_all_right(group) for group in groups.values() if group[0].question.part == part],
                part,
            )
        ),
    ]


def _all_right(group: Sequence[Scored]) -> bool:
    return all(one.score == 1 for one in group)
