"""The contract of a task: its questions, how one answer is scored, and the metrics of all answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Question:
    """One prompt about one image, or about none."""

    id: str  # unique within the task
    prompt: str
    image: Path | bytes | None
    image_id: str  # equal for questions about one image; "" where there is none
    truth: tuple[str, ...]  # the right answer, or what each annotator answered
    options: tuple[str, ...] = ()  # of a multiple-choice question, without their letters
    part: str = ""  # the split, subtask or category that it belongs to
    group: str = ""  # questions of one group stay together when a sample is drawn

    @property
    def cluster(self) -> str:
        """What other questions its answer may depend on: those about the same image."""
        return self.image_id or f"question {self.id}"


@dataclass(frozen=True)
class Scored:
    """An answer, and how right it is: 0 to 1."""

    question: Question
    text: str
    score: float


@dataclass(frozen=True)
class Metric:
    """One figure with its 95 % interval, in percent or in points."""

    name: str
    part: str  # "": of all questions
    value: float
    low: float
    high: float
    count: int  # questions, images or groups that it is computed from
    unit: Literal["%", "points"] = "%"


class Task(Protocol):
    """What a file of `edge/evaluation/tasks/` holds. The constants are literals."""

    TITLE: str  # as its authors write it
    FOLDERS: tuple[str, ...]  # what its folder is called below --data in the published layouts
    MARKS: tuple[str, ...]  # patterns of the files by which its folder is known
    MAX_TOKENS: int  # of an answer, as in the published evaluation
    WHOLE_GROUPS: bool  # a group counts as one question, which is right only where all of it are

    def read(self, root: Path) -> list[Question]:
        """All questions, from the official files. Raises UsageError that names the file, or the entry, that is off."""
        ...

    def score(self, question: Question, text: str) -> float:
        """How right an answer is, without the white space around it: 0 to 1."""
        ...

    def metrics(self, scored: Sequence[Scored]) -> list[Metric]:
        """The published figures; of a part that has no answers, none."""
        ...
