"""The test split: pictures and questions whose seeds no training, watching or calibration uses. Needs no torch."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from exporters.demo.questions import KINDS, ask
from exporters.demo.world import draw, scene

QUESTIONS = 720  # 90 of each of the eight kinds


@dataclass(frozen=True)
class Item:
    """A picture, a question about it, its only right answer, and the kind of question."""

    picture: Image.Image
    question: str
    answer: str
    kind: str


def items(count: int = QUESTIONS, split: str = "test") -> Iterator[Item]:
    """`count` questions, the kinds in turn, each about a picture of its own; always the same for a split."""
    index = found = 0
    while found < count:
        what = scene(split, index)
        index += 1
        question = ask(what, KINDS[found % len(KINDS)], random.Random(f"ask:{what.seed}"))
        if question:  # a scene without sign is seldom asked to be read
            found += 1
            yield Item(draw(what), question.text, question.answer, question.kind)


def score(items_and_answers: list[tuple[Item, str]]) -> dict[str, float]:
    """Percent of answers that are exactly right, by kind; the white space around an answer does not count."""
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for item, given in items_and_answers:
        right[item.kind].append(given.strip() == item.answer)
    return {kind: 100 * sum(marks) / len(marks) for kind, marks in right.items() if marks}
