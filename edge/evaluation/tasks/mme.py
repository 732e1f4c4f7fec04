"""MME: two questions, yes and no, about each image. C. Fu et al., MME: A Comprehensive Evaluation Benchmark (2023).

A subtask's score is its accuracy plus accuracy+, the share of images with both answers right, in percent: 200 at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.errors import UsageError
from edge.evaluation import files
from edge.evaluation.files import Official
from edge.evaluation.intervals import Sums, percentile, replicates
from edge.evaluation.metrics import accuracy, cluster_sums, share
from edge.evaluation.task import SHORT, Metric, Question, Scored

TITLE = "MME"
FOLDERS = ("mme", "MME")
MARKS = ("existence/*.txt", "*/existence/*.txt", "existence/*/*.txt", "*/existence/*/*.txt")
MAX_TOKENS = 128
WHOLE_GROUPS = False
PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
FULL = 200.0  # the most points of a subtask
_PLACES = ("", "MME_Benchmark_release_version", "images")
_SOURCE = "{} of MME_Benchmark_release_version.zip (github.com/BradyFU/Awesome-Multimodal-Large-Language-Models)"
_ASKED = "Please answer yes or no."
_SUFFIXES = (".jpg", ".png", ".jpeg")


def read(root: Path) -> list[Question]:
    return [question for name in (*PERCEPTION, *COGNITION) for question in _subtask(root, name)]


def _subtask(root: Path, name: str) -> Iterator[Question]:
    folder = files.find(root, Official(name, _SOURCE.format(name), _PLACES))
    parted = (folder / "questions_answers_YN").is_dir()
    texts, images = (folder / "questions_answers_YN", folder / "images") if parted else (folder, folder)
    found = sorted(texts.glob("*.txt"))
    if not found:
        raise UsageError(f"no questions in {str(texts)!r}", hint=f"it is {_SOURCE.format(name)}")
    for path in found:
        yield from _about_one_image(path, images, name)


def _about_one_image(path: Path, images: Path, subtask: str) -> Iterator[Question]:
    written = [line.rstrip("\r").split("\t") for line in files.text(path).split("\n") if line.strip()]
    pairs = [(line[0], line[1].strip().lower()) for line in written if len(line) == 2]
    if len(written) != 2 or len(pairs) != 2 or not {answer for _, answer in pairs} <= {"yes", "no"}:
        raise UsageError(
            f"{path} does not hold two questions, each with Yes or No after a tab",
            hint="is it the official file, unedited?",
        )
    candidates = [images / f"{path.stem}{suffix}" for suffix in _SUFFIXES]
    image = next((candidate for candidate in candidates if candidate.is_file()), candidates[0])
    name = f"{subtask}/{path.stem}"
    for number, (asked, answer) in enumerate(pairs, start=1):
        prompt = f"{asked.replace(_ASKED, '').strip()}\n{SHORT}"
        yield Question(f"{name}/{number}", prompt, image, name, (answer,), part=subtask, group=name)


def score(question: Question, text: str) -> float:
    return float(answered(text) == question.truth[0])


def answered(text: str) -> str:
    """`yes` or `no` where the first four letters hold it, else `other`: as the authors' `calculation.py` reads it."""
    start = text.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def metrics(scored: Sequence[Scored]) -> list[Metric]:
    """The sums first; a sum of which a subtask has no answer is left out."""
    names = (*PERCEPTION, *COGNITION)
    parts = {name: [one for one in scored if one.question.part == name] for name in names}
    parts = {name: found for name, found in parts.items() if found}
    values = {name: float(_points(_sums(found).sum(axis=0))) for name, found in parts.items()}
    drawn = {name: replicates(_sums(found), _points, names.index(name)) for name, found in parts.items()}
    sums = [
        _total(title, [(values[name], drawn[name], parts[name]) for name in subtasks])
        for title, subtasks in (("perception", PERCEPTION), ("cognition", COGNITION))
        if parts.keys() >= set(subtasks)
    ]
    return [*sums, *(metric for name, found in parts.items() for metric in _of_subtask(name, found, drawn[name]))]


def _total(title: str, subtasks: Sequence[tuple[float, NDArray[np.float64], list[Scored]]]) -> Metric:
    value = sum(points for points, _, _ in subtasks)
    clusters = sum(len(found) // 2 for _, _, found in subtasks)
    drawn = np.sum([one for _, one, _ in subtasks], axis=0)
    low, high = percentile(drawn, value, clusters, FULL * len(subtasks))
    return Metric(title, "", value, low, high, sum(len(found) for _, _, found in subtasks), "points")


def _of_subtask(name: str, scored: Sequence[Scored], drawn: NDArray[np.float64]) -> list[Metric]:
    sums = _sums(scored)
    value = float(_points(sums.sum(axis=0)))
    low, high = percentile(drawn, value, len(sums), FULL)
    return [
        Metric("score", name, value, low, high, len(scored), "points"),
        *accuracy(scored, part=name),
        *share("accuracy+", [bool(row[1]) for row in sums], name),
    ]


def _sums(scored: Sequence[Scored]) -> Sums:
    """Of each image: right answers, 1 where both are right, answers, and 1: f64 [images, 4]."""
    sums = cluster_sums(scored, lambda one: (one.score, 0.0, 1.0, 0.0))
    sums[:, 1], sums[:, 3] = sums[:, 0] == 2, 1.0
    return sums


def _points(sums: Sums) -> NDArray[np.float64]:
    """[..., 4] → [...], 0 to 200."""
    return 100 * (sums[..., 0] / sums[..., 2] + sums[..., 1] / sums[..., 3])
