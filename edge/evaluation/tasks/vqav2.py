"""VQAv2, validation split of COCO 2014. Y. Goyal et al., Making the V in VQA Matter (2017)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.errors import UsageError
from edge.evaluation import files, vqa
from edge.evaluation.files import Official
from edge.evaluation.metrics import mean_score
from edge.evaluation.task import SHORT, Metric, Question, Scored

TITLE = "VQAv2"
FOLDERS = ("vqav2", "VQAv2")
MARKS = ("v2_OpenEnded_mscoco_val2014_questions.json", "Questions/v2_OpenEnded_mscoco_val2014_questions.json")
MAX_TOKENS = 128
WHOLE_GROUPS = False
KINDS = ("yes/no", "number", "other")
_QUESTIONS = Official(
    "v2_OpenEnded_mscoco_val2014_questions.json", "in v2_Questions_Val_mscoco.zip of visualqa.org", ("", "Questions")
)
_ANNOTATIONS = Official(
    "v2_mscoco_val2014_annotations.json", "in v2_Annotations_Val_mscoco.zip of visualqa.org", ("", "Annotations")
)
_IMAGES = Official("val2014", "COCO's val2014.zip (images.cocodataset.org), unpacked", ("", "Images/mscoco", "images"))


def read(root: Path) -> list[Question]:
    path, images, answers = files.find(root, _QUESTIONS), files.find(root, _IMAGES), _answers(root)

    def question(entry: Any) -> Question:
        number, name = entry["question_id"], f"COCO_val2014_{entry['image_id']:012d}.jpg"
        if number not in answers:
            raise ValueError(f"question {number} has no annotation: are both files of one split?")
        kind, truth = answers[number]
        prompt = f"{files.string(entry, 'question')}\n{SHORT}"
        return Question(str(number), prompt, images / name, name, truth, part=kind)

    return files.each(path, enumerate(files.member(path, files.load(path), "questions", list), start=1), question)


def _answers(root: Path) -> dict[int, tuple[str, tuple[str, ...]]]:
    path = files.find(root, _ANNOTATIONS)

    def answers(entry: Any) -> tuple[int, tuple[str, tuple[str, ...]]]:
        given = tuple(files.string(one, "answer") for one in entry["answers"])
        if not given:
            raise ValueError("nobody answered it")
        return entry["question_id"], (files.string(entry, "answer_type"), given)

    found = files.member(path, files.load(path), "annotations", list)
    if not found:
        raise UsageError(f"{path} holds no annotations", hint="download it again")
    return dict(files.each(path, enumerate(found, start=1), answers))


def score(question: Question, text: str) -> float:
    """The challenge's evaluation of an answer that is prepared as published evaluations prepare it for submission.

    Where all annotators agree, the challenge compares with their answer as it is.
    """
    answer = vqa.prepare(text)
    truth = [one.replace("\n", " ").replace("\t", " ").strip() for one in question.truth]
    if len(set(truth)) > 1:
        answer, truth = vqa.normalise(answer), [vqa.normalise(one) for one in truth]
    return vqa.accuracy(answer, truth)


def metrics(scored: Sequence[Scored]) -> list[Metric]:
    parts = [[one for one in scored if one.question.part == kind] for kind in KINDS]
    of_kinds = [metric for kind, part in zip(KINDS, parts, strict=True) for metric in mean_score(part, part=kind)]
    return [*mean_score(scored), *of_kinds]
