"""The test split: pictures and questions whose seeds no training, watching or calibration uses. Needs no torch.

`python -m exporters.demo.heldout DIR` writes it for `edge bench --questions DIR`.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from edge.inputs.calibration import PROMPTS
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


def write(folder: Path, count: int = QUESTIONS) -> None:
    """A file for each picture, and `prompts.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, item in enumerate(items(count)):
        item.picture.save(folder / f"{number:03}.png")
        lines.append(json.dumps({"image": f"{number:03}.png", "question": item.question, "answer": item.answer}))
    (folder / PROMPTS).write_text("\n".join(lines) + "\n", encoding="utf-8")


def score(items_and_answers: list[tuple[Item, str]]) -> dict[str, float]:
    """Percent of answers that are exactly right, by kind; the white space around an answer does not count."""
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for item, given in items_and_answers:
        right[item.kind].append(given.strip() == item.answer)
    return {kind: 100 * sum(marks) / len(marks) for kind, marks in right.items() if marks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--count", type=int, default=QUESTIONS, help="questions to write")
    args = parser.parse_args()
    write(args.folder, args.count)


if __name__ == "__main__":
    main()
