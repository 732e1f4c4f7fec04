"""Which questions are asked, and in which order."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from edge.errors import UsageError
from edge.evaluation.task import Question

SEED = "edge eval 1"


def select(questions: Sequence[Question], limit: int | None, title: str) -> list[Question]:
    """All, or a sample of at least `limit` questions; those about one image follow each other.

    Raises UsageError on none, and on two of one id.
    """
    if not questions:
        raise UsageError(f"{title} has no questions", hint="are its files complete?")
    name, count = Counter(question.id for question in questions).most_common(1)[0]
    if count > 1:
        raise UsageError(f"question {name} of {title} occurs {count} times", hint="is it the official file, unedited?")
    return by_image(questions if limit is None else sample(questions, limit))


def sample(questions: Sequence[Question], limit: int) -> list[Question]:
    """In the order of the hashes of their names, so that it is the same everywhere and a larger sample holds a smaller
    one; groups are drawn whole. What is drawn keeps its order."""
    groups = dict.fromkeys(question.group or question.id for question in questions)
    sizes = Counter(question.group or question.id for question in questions)
    drawn: set[str] = set()
    count = 0
    for group in sorted(groups, key=lambda name: hashlib.sha256(f"{SEED} {name}".encode()).digest()):
        if count >= limit:
            break
        drawn.add(group)
        count += sizes[group]
    return [question for question in questions if (question.group or question.id) in drawn]


def by_image(questions: Sequence[Question]) -> list[Question]:
    """Images in the order of their first question: each is encoded once."""
    found: dict[str, list[Question]] = {}
    for question in questions:
        found.setdefault(question.cluster, []).append(question)
    return [question for group in found.values() for question in group]


def fingerprint(questions: Sequence[Question]) -> str:
    """sha256 of all that is asked and of what is right: runs with the same one can be compared."""
    digest = hashlib.sha256()
    for question in sorted(questions, key=lambda one: one.id):
        parts = (question.id, question.prompt, question.image_id, question.part, question.group)
        digest.update(repr((parts, question.truth, question.options)).encode())
    return digest.hexdigest()
