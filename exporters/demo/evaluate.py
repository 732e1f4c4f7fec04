"""Ask bundles the questions of the test split: `python -m exporters.demo.evaluate BUNDLE …`. Needs no torch."""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path

import edge
from exporters.demo.heldout import QUESTIONS, items, score
from exporters.demo.questions import KINDS

log = logging.getLogger("demo")


def measure(bundle: Path, count: int = QUESTIONS, threads: int = 0) -> dict[str, float]:
    """Percent of questions answered exactly right, by kind; greedy decoding."""
    with edge.load(bundle, threads=threads) as session:
        return score([(item, session.ask(item.picture, item.question)) for item in items(count)])


def table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """A row a bundle, in Markdown."""
    head = ["bundle", "all", *KINDS]
    rows = [
        [name, f"{sum(row.values()) / len(row):.1f}", *(f"{row[kind]:.1f}" for kind in KINDS)]
        for name, row in scores.items()
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", metavar="BUNDLE", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=QUESTIONS, help="questions to ask")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    scores = {bundle.name: measure(bundle, args.count, args.threads) for bundle in args.bundles}
    log.info(table(scores))


if __name__ == "__main__":
    main()
