"""TextVQA with OCR tokens in the prompt, as most published figures are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge.errors import UsageError
from edge.evaluation import files
from edge.evaluation.files import Official
from edge.evaluation.task import SHORT, Question
from edge.evaluation.tasks import textvqa
from edge.evaluation.tasks.textvqa import metrics, score

__all__ = ["metrics", "read", "score"]

TITLE = "TextVQA with OCR tokens"
FOLDERS = ("textvqa", "TextVQA")
MARKS = ("TextVQA_0.5.1_val.json",)
MAX_TOKENS = 128
WHOLE_GROUPS = False
_TOKENS = Official(
    "TextVQA_Rosetta_OCR_v0.2_val.json", "TextVQA_Rosetta_OCR_v0.2_val.json of textvqa.org: its OCR tokens"
)
_PUBLISHED = "*textvqa_val_v051_ocr.jsonl"  # the questions with the tokens, as published evaluations come with them


def read(root: Path) -> list[Question]:
    questions = textvqa.read(root)
    written = next(iter(sorted(root.glob(_PUBLISHED))), None)
    prompts = _from_tokens(root, questions) if written is None else _as_written(written)
    if lacking := [question for question in questions if _key(question) not in prompts]:
        raise UsageError(
            f"no OCR tokens for {len(lacking)} of {len(questions)} questions; the first is {lacking[0].id}",
            hint="--task textvqa asks without them",
        )
    return [replace(question, prompt=prompts[_key(question)]) for question in questions]


def _key(question: Question) -> tuple[str, str]:
    return question.image_id, question.prompt.removesuffix(f"\n{SHORT}")


def _as_written(path: Path) -> Mapping[tuple[str, str], str]:
    def prompt(entry: Any) -> tuple[tuple[str, str], str]:
        whole = files.string(entry, "text")
        return (files.string(entry, "question_id"), whole.partition("\nReference OCR token:")[0]), whole

    return dict(files.each(path, enumerate(files.lines(path), start=1), prompt))


def _from_tokens(root: Path, questions: list[Question]) -> Mapping[tuple[str, str], str]:
    path = files.find(root, _TOKENS)

    def tokens(entry: Any) -> tuple[str, str]:
        return files.string(entry, "image_id"), ", ".join(entry["ocr_tokens"])

    known = dict(files.each(path, enumerate(files.member(path, files.load(path), "data", list), start=1), tokens))
    return {
        (image, asked): f"{asked}\nReference OCR token: {known[image]}\n{SHORT}"
        for image, asked in map(_key, questions)
        if image in known
    }
