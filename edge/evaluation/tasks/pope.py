"""POPE: is an object in the image? Y. Li et al., Evaluating Object Hallucination in Large Vision-Language Models, 2023.

An answer is read as the authors' `evaluate.py` reads it; F1 averaged over the three splits is what papers report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge.evaluation import files
from edge.evaluation.files import Official
from edge.evaluation.intervals import Sums
from edge.evaluation.metrics import accuracy, cluster_sums, resampled, share
from edge.evaluation.task import SHORT, Metric, Question, Scored

TITLE = "POPE"
FOLDERS = ("pope", "POPE")
MARKS = ("coco_pope_*.json", "coco/coco_pope_*.json", "output/coco/coco_pope_*.json")
MAX_TOKENS = 128
WHOLE_GROUPS = False
SPLITS = ("random", "popular", "adversarial")
_IMAGES = Official("val2014", "COCO's val2014.zip (images.cocodataset.org), unpacked", ("", "coco", "images"))


def read(root: Path) -> list[Question]:
    images = files.find(root, _IMAGES)
    return [question for split in SPLITS for question in _split(root, images, split)]


def _split(root: Path, images: Path, split: str) -> list[Question]:
    name = f"coco_pope_{split}.json"
    published = f"output/coco/{name} of github.com/AoiDragon/POPE"
    path = files.find(root, Official(name, published, ("coco", "", "output/coco")))

    def question(entry: Any) -> Question:
        label, image = files.string(entry, "label"), files.string(entry, "image")
        if label not in ("yes", "no"):
            raise ValueError(f"label is {label!r}")
        prompt = f"{files.string(entry, 'text')}\n{SHORT}"
        return Question(f"{split}/{entry['question_id']}", prompt, images / image, image, (label,), part=split)

    return files.each(path, enumerate(files.lines(path), start=1), question)


def score(question: Question, text: str) -> float:
    return float(answered(text) == question.truth[0])


def answered(text: str) -> str:
    """`no` where the first sentence has one of the words no, No and not; else `yes`."""
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"no", "No", "not"} & set(words) else "yes"


def metrics(scored: Sequence[Scored]) -> list[Metric]:
    splits = {split: [one for one in scored if one.question.part == split] for split in SPLITS}
    present = {split: found for split, found in splits.items() if found}
    sums = cluster_sums(scored, lambda one: [n for split in present for n in _counts(one, split)])
    name = "F1, mean of splits" if len(present) > 1 else "F1"
    return [
        resampled(name, sums, _mean_f1, len(scored)),
        *accuracy(scored),
        *(metric for split, found in present.items() for metric in _of_split(found, split)),
    ]


def _of_split(scored: Sequence[Scored], split: str) -> list[Metric]:
    right, said, there = [one.score == 1 for one in scored], list(map(_said, scored)), list(map(_there, scored))
    sums = cluster_sums(scored, lambda one: _counts(one, split))
    return [
        *accuracy(scored, part=split),
        *share("precision", [r for r, yes in zip(right, said, strict=True) if yes], split),
        *share("recall", [r for r, yes in zip(right, there, strict=True) if yes], split),
        resampled("F1", sums, _mean_f1, len(scored), split),
        *share("yes ratio", said, split),
    ]


def _counts(one: Scored, split: str) -> tuple[float, float]:
    """Twice the true positives, and the positives that were said and those that are: F1 is their ratio."""
    if one.question.part != split:
        return 0.0, 0.0
    said, there = _said(one), _there(one)
    return 2.0 * (said and there), float(said) + float(there)


def _there(one: Scored) -> bool:
    return one.question.truth[0] == "yes"


def _said(one: Scored) -> bool:
    """What is wrong without an answer, as its prompt was too long, counts as the other answer."""
    return _there(one) == (one.score == 1)


def _mean_f1(sums: Sums) -> Sums:
    """Of splits whose counts stand side by side: [..., 2 · splits] → [...]. Without any positive it is 0."""
    twice, positives = sums[..., 0::2], sums[..., 1::2]
    splits: Sums = np.divide(twice, positives, out=np.zeros_like(twice), where=positives != 0)
    return np.asarray(splits.mean(axis=-1))
