"""GQA, balanced test-dev split. D. A. Hudson, C. D. Manning, GQA: A New Dataset for Real-World Visual Reasoning (2019).

Right is what equals the answer, in lower case and without a full stop at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.errors import UsageError
from edge.evaluation import files
from edge.evaluation.files import Official
from edge.evaluation.metrics import accuracy
from edge.evaluation.task import SHORT, Metric, Question, Scored

TITLE = "GQA"
FOLDERS = ("gqa", "gqa/data", "GQA")
MARKS = ("testdev_balanced_questions.json", "questions1.2/testdev_balanced_questions.json")
MAX_TOKENS = 128
WHOLE_GROUPS = False
_QUESTIONS = Official(
    "testdev_balanced_questions.json", "in questions1.2.zip of cs.stanford.edu/people/dorarad/gqa", ("", "questions1.2")
)
_IMAGES = Official("images", "images.zip of cs.stanford.edu/people/dorarad/gqa, unpacked")


def read(root: Path) -> list[Question]:
    path, images = files.find(root, _QUESTIONS), files.find(root, _IMAGES)
    document = files.load(path)
    if not isinstance(document, dict):
        raise UsageError(f"{path} is no object of questions by their id", hint="is it the official file, unedited?")

    def question(item: Any) -> Question:
        number, entry = item
        image, structure = files.string(entry, "imageId"), entry["types"]["structural"]
        prompt, part = f"{files.string(entry, 'question')}\n{SHORT}", "open" if structure == "query" else "binary"
        return Question(number, prompt, images / f"{image}.jpg", image, (files.string(entry, "answer"),), part=part)

    balanced = [(number, (number, entry)) for number, entry in document.items() if _is_balanced(entry)]
    return files.each(path, balanced, question)


def _is_balanced(entry: Any) -> bool:
    """The official evaluation counts no others."""
    return not isinstance(entry, dict) or entry.get("isBalanced", True) is not False


def score(question: Question, text: str) -> float:
    return float(text.rstrip(".").lower() == question.truth[0])


def metrics(scored: Sequence[Scored]) -> list[Metric]:
    parts = {part: [one for one in scored if one.question.part == part] for part in ("binary", "open")}
    return [*accuracy(scored), *(metric for part, found in parts.items() for metric in accuracy(found, part=part))]
