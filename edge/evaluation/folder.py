"""A folder of the project's own kind as a task: `prompts.jsonl` and its images, asked as they stand.

Right is what says the same as the known answer, as in `edge bench --questions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.evaluation.metrics import accuracy
from edge.evaluation.task import Metric, Question, Scored
from edge.inputs import calibration


@dataclass
class FolderTask:
    """Of any folder; `TITLE` is what to call it."""

    TITLE: str
    FOLDERS: tuple[str, ...] = ()
    MARKS: tuple[str, ...] = (calibration.PROMPTS,)
    MAX_TOKENS: int = 256
    WHOLE_GROUPS: bool = False

    def read(self, root: Path) -> list[Question]:
        here = f"{root.as_posix()}/"
        return [
            Question(
                id=str(number),
                prompt=record.question,
                image=record.picture,
                image_id=record.picture.as_posix().removeprefix(here),
                truth=(record.answer,),
            )
            for number, record in enumerate(calibration.answered(root), start=1)
        ]

    def score(self, question: Question, text: str) -> float:
        return float(calibration.same(text, question.truth[0]))

    def metrics(self, scored: Sequence[Scored]) -> list[Metric]:
        return accuracy(scored)
