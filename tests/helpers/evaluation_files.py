"""Benchmarks in miniature with their images, a session that answers from a table, and files of answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from conftest import REPOSITORY
from PIL import Image

from edge.bundle.manifest import Bundle
from edge.evaluation import answers_file, tasks
from edge.evaluation.answers_file import Line, Run
from edge.evaluation.task import Question, Scored
from edge.inference.generate import Answer, Timings

DATA = REPOSITORY / "tests" / "data" / "evaluation"
ANSWERS: dict[str, dict[str, str]] = json.loads((DATA / "answers.json").read_text(encoding="utf-8"))
ANSWERS["textvqa_ocr"] = ANSWERS["textvqa"]
FOLDERS = ("pope/val2014", "textvqa/train_images", "vqav2/val2014", "gqa/images", "sqa/images/test")
RUN = Run("pope", "POPE", "demo w8a8+w4", "b" * 64, 500, "q" * 64, "onnxruntime", False, "0.2.0")


def benchmarks(folder: Path) -> Path:
    """All tasks' files and images, each below its name."""
    shutil.copytree(DATA, folder)
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    for name in tasks.names():
        for question in tasks.find(name).read(tasks.locate(name, folder)):
            if isinstance(question.image, Path):
                draw(question.image)
    return folder


def draw(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 6), (sum(path.name.encode()) % 256, 90, 40)).save(path)


def scored(name: str, data: Path, answers: Mapping[str, str] | None = None) -> list[Scored]:
    """Every question of a task with its answer in `answers.json`."""
    task, texts = tasks.find(name), answers or ANSWERS[name]
    questions = task.read(tasks.locate(name, data))
    return [Scored(q, texts[q.id].strip(), task.score(q, texts[q.id].strip())) for q in questions]


class Answering:
    """A session that answers each question of a task as `answers.json` does; `raises` goes before, once."""

    def __init__(self, bundle: Bundle, questions: Sequence[Question], answers: Mapping[str, str]) -> None:
        self.bundle = bundle
        self.plan = SimpleNamespace(engines=("null",), notes=())
        self.asked: list[tuple[Any, str, int]] = []
        self.raises: dict[int, BaseException] = {}
        self.last = Answer("", (), "stop", 1, 0, 0, 3, Timings(0, 0, 0, 0, 0, 0, 0))
        self._answers = {(self._name(q.image), q.prompt): answers[q.id] for q in questions}

    def load(self, path: Path, **options: Any) -> Answering:
        self.options = options
        return self

    def ask(self, image: Any, prompt: str, *, max_tokens: int) -> str:
        self.asked.append((image, prompt, max_tokens))
        if error := self.raises.pop(len(self.asked), None):
            raise error
        return f" {self._answers[self._name(image), prompt]}\n"

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @staticmethod
    def _name(image: Any) -> Any:
        return image if isinstance(image, bytes) else str(image)


def write_answers(
    path: Path,
    count: int = 500,
    score: Callable[[int], float] = lambda number: float(number % 3 > 0),
    image: Callable[[int], str] = lambda number: f"{number // 2}.jpg",
    **changes: Any,
) -> Path:
    """A finished run of invented answers."""
    file, _ = answers_file.resume(path, replace(RUN, **changes))
    for number in range(count):
        right = score(number)
        file.append(Line(f"q{number}", image(number), "", "yes" if right else "no", right, "stop", 2, 0.25))
    return path
