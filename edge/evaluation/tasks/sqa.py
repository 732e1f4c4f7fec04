"""ScienceQA, test split. P. Lu et al., Learn to Explain: Multimodal Reasoning via Thought Chains for Science QA (2022).

Papers on small models report the questions with an image alone: the part `IMG`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.errors import UsageError
from edge.evaluation import files
from edge.evaluation.files import Official
from edge.evaluation.metrics import accuracy
from edge.evaluation.task import LETTER, Metric, Question, Scored

TITLE = "ScienceQA"
FOLDERS = ("sqa", "scienceqa", "data/scienceqa")
MARKS = ("problems.json", "pid_splits.json")
MAX_TOKENS = 1024
WHOLE_GROUPS = False
LETTERS = ("A", "B", "C", "D", "E")
_SOURCE = "data/scienceqa/{} of github.com/lupantech/ScienceQA"
_PROBLEMS = Official("problems.json", _SOURCE.format("problems.json"))
_SPLITS = Official("pid_splits.json", _SOURCE.format("pid_splits.json"))
_IMAGES = Official("test", "test.zip of its images, unpacked to images/test (tools/download.sh there)", ("images", ""))
_SENTENCE = re.compile(r"The answer is ([A-Z]).")


def read(root: Path) -> list[Question]:
    path, splits = files.find(root, _PROBLEMS), files.find(root, _SPLITS)
    problems = files.load(path)
    wanted = files.member(splits, files.load(splits), "test", list)
    if not isinstance(problems, dict):
        raise UsageError(f"{path} is no object of problems by their id", hint="is it the official file, unedited?")
    images = files.find(root, _IMAGES)

    def question(number: Any) -> Question:
        entry, choices = problems[number], problems[number]["choices"]
        image = entry["image"] and Path(number, files.string(entry, "image"))
        if not 0 <= entry["answer"] < len(choices) <= len(LETTERS):
            raise ValueError(f"answer {entry['answer']} of {len(choices)} choices")
        return Question(
            id=number,
            prompt=_prompt(files.string(entry, "hint").strip(), files.string(entry, "question"), choices),
            image=images / image if image else None,
            image_id=image.as_posix() if image else "",
            truth=(LETTERS[entry["answer"]],),
            options=tuple(choices),
            part="IMG" if image else "no image",
        )

    return files.each(path, ((number, number) for number in wanted), question)


def _prompt(hint: str, asked: str, choices: Sequence[str]) -> str:
    """As published evaluations write it, without double spaces."""
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    whole = "\n".join([*([f"Context: {hint}"] if hint else []), asked, *options])
    return f"{whole.replace('  ', ' ').strip()}\n{LETTER}"


def score(question: Question, text: str) -> float:
    return float(answered(text, len(question.options)) == question.truth[0])


def answered(text: str, count: int) -> str | None:
    """The letter of one of `count` options: alone, before `. `, or in the only sentence `The answer is X.`"""
    if text in LETTERS:
        found = text
    elif text[:1] in LETTERS and text[1:3] == ". ":
        found = text[0]
    else:
        sentences = _SENTENCE.findall(text)
        found = sentences[0] if len(sentences) == 1 else ""
    return found if found in LETTERS[:count] else None


def metrics(scored: Sequence[Scored]) -> list[Metric]:
    parts = {part: [one for one in scored if one.question.part == part] for part in ("IMG", "no image")}
    return [*accuracy(scored), *(metric for part, found in parts.items() for metric in accuracy(found, part=part))]
