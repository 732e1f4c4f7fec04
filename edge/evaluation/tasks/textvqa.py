"""TextVQA, validation split of 0.5.1, without OCR tokens. A. Singh et al., Towards VQA Models That Can Read (2019)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.evaluation import files, vqa
from edge.evaluation.files import Official
from edge.evaluation.metrics import mean_score
from edge.evaluation.task import SHORT, Metric, Question, Scored

TITLE = "TextVQA"
FOLDERS = ("textvqa", "TextVQA")
MARKS = ("TextVQA_0.5.1_val.json",)
MAX_TOKENS = 128
WHOLE_GROUPS = False
ANNOTATORS = 10
_QUESTIONS = Official("TextVQA_0.5.1_val.json", "TextVQA_0.5.1_val.json of textvqa.org")
_IMAGES = Official("train_images", "train_val_images.zip of textvqa.org, unpacked", ("", "train_val_images"))


def read(root: Path) -> list[Question]:
    path, images = files.find(root, _QUESTIONS), files.find(root, _IMAGES)

    def question(entry: Any) -> Question:
        image, answers = files.string(entry, "image_id"), entry["answers"]
        if len(answers) != ANNOTATORS or not all(isinstance(answer, str) for answer in answers):
            raise ValueError(f"{ANNOTATORS} answers are expected, and these are {answers!r}")
        prompt = f"{files.string(entry, 'question').capitalize()}\n{SHORT}"  # as published evaluations write it
        return Question(str(entry["question_id"]), prompt, images / f"{image}.jpg", image, tuple(answers))

    return files.each(path, enumerate(files.member(path, files.load(path), "data", list), start=1), question)


def score(question: Question, text: str) -> float:
    return vqa.accuracy(vqa.prepare(text), [vqa.prepare(answer) for answer in question.truth])


def metrics(scored: Sequence[Scored]) -> list[Metric]:
    return mean_score(scored)
