"""The runner: asks a session a task's questions, keeps every answer as it comes, and makes the report."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from edge import __version__
from edge.bundle.manifest import MANIFEST, sha256
from edge.errors import ContextError, ImageError
from edge.evaluation.answers_file import Line, Run
from edge.evaluation.selection import fingerprint
from edge.evaluation.task import Metric, Question, Scored, Task
from edge.inference.session import Session


@dataclass(frozen=True)
class Progress:
    """After an answer: how many there are, what they are worth so far (0 to 1), and the seconds left, by this run's
    pace."""

    done: int
    total: int
    score: float
    seconds_left: float


@dataclass(frozen=True)
class Report:
    """The metrics of a task, and what they are of."""

    run: Run
    asked: int
    metrics: tuple[Metric, ...]
    cut_off: int  # answers that ended at the most tokens, or with the context
    too_long: int  # prompts that did not fit into the context; they count as wrong
    seconds: float  # of an answer, in the mean

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def describe(session: Session, name: str, task: Task, questions: Sequence[Question]) -> Run:
    """`questions`: all of the task, not a sample."""
    manifest = session.bundle.manifest
    return Run(
        task=name,
        title=task.TITLE,
        bundle=f"{manifest.name} {'+'.join(part.scheme for part in manifest.parts)}",
        bundle_sha256=sha256(session.bundle.path / MANIFEST),
        questions=len(questions),
        questions_sha256=fingerprint(questions),
        engines=",".join(session.plan.engines),
        whole_groups=task.WHOLE_GROUPS,
        edge_vlm=__version__,
    )


def ask(
    session: Session,
    task: Task,
    questions: Sequence[Question],
    known: Sequence[Line],
    keep: Callable[[Line], None],
    report: Callable[[Progress], None],
) -> list[Line]:
    """The answers in the order of the questions, greedy; those of `known` are not asked again.

    `keep` gets each new answer, `report` the progress after it. Raises ImageError that names the question.
    """
    answers = {line.id: line for line in known}
    open_questions = [question for question in questions if question.id not in answers]
    done = [answers[question.id].score for question in questions if question.id in answers]
    count, total = len(done), sum(done)
    started = perf_counter()
    for number, question in enumerate(open_questions, start=1):
        line = _answer(session, task, question)
        keep(line)
        answers[line.id] = line
        total += line.score
        left = (perf_counter() - started) / number * (len(open_questions) - number)
        report(Progress(count + number, len(questions), total / (count + number), left))
    return [answers[question.id] for question in questions]


def _answer(session: Session, task: Task, question: Question) -> Line:
    image = str(question.image) if isinstance(question.image, Path) else question.image
    started = perf_counter()
    try:
        text = session.ask(image, question.prompt, max_tokens=task.MAX_TOKENS).strip()
    except ContextError:
        return _line(question, "", 0.0, "too long", 0, perf_counter() - started)
    except ImageError as error:
        raise ImageError(f"question {question.id}: {error.message}", hint=error.hint) from error
    seconds, last = perf_counter() - started, session.last
    return _line(question, text, task.score(question, text), last.stop_reason, last.generated_tokens, seconds)


def _line(question: Question, text: str, score: float, stop: Any, tokens: int, seconds: float) -> Line:
    return Line(question.id, question.image_id, question.group, text, score, stop, tokens, round(seconds, 4))


def summarise(run: Run, task: Task, questions: Sequence[Question], lines: Sequence[Line]) -> Report:
    """Every answer is scored anew, by its text."""
    texts: Mapping[str, Line] = {line.id: line for line in lines}
    answered = [(question, texts[question.id]) for question in questions]
    scored = [
        Scored(question, line.text, 0.0 if line.stop == "too long" else task.score(question, line.text))
        for question, line in answered
    ]
    stops = Counter(line.stop for _, line in answered)
    return Report(
        run=run,
        asked=len(scored),
        metrics=tuple(task.metrics(scored)),
        cut_off=stops["length"] + stops["context"],
        too_long=stops["too long"],
        seconds=statistics.fmean(line.seconds for _, line in answered),
    )
