"""Hold bundles to torch on the test split: `python -m exporters.demo.agreement BUNDLE …`.

Torch computes the checkpoint's own weights in fp32. Pictures: the cosine between a bundle's embeddings and torch's.
Tokens: both sides get torch's embeddings; greedy decoding goes on for 64 tokens, whether the answer has ended or not.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import edge
from edge.errors import ParityError
from edge.inference.session import Session
from edge.inputs import image
from edge.types import Embeddings, Segment, Tokens
from edge.verify import distance
from exporters import reference
from exporters.demo.heldout import QUESTIONS, Item, items
from exporters.models.decoders import LanguageModel
from exporters.models.encoder import Encoder
from exporters.pipeline import components, cut, own_tokenizer
from exporters.sources.checkpoint import Checkpoint, open_checkpoint

log = logging.getLogger("demo")
STEPS = 64
CHECKPOINT = Path(__file__).parent / "checkpoint"


@dataclass(frozen=True)
class Truth:
    """What torch sees and says."""

    item: Item
    prompt: tuple[Segment, ...]  # with torch's embeddings
    embeddings: Embeddings
    tokens: tuple[int, ...]  # STEPS of them
    ended: int  # how many of them make the answer, with the id that ends it


@dataclass(frozen=True)
class Agreement:
    """A bundle's, question by question."""

    cosines: tuple[float, ...]
    equal: tuple[int, ...]  # greedy tokens until the first that differs
    answers: tuple[bool, ...]  # whether they last until the answer's end

    @property
    def whole(self) -> float:
        """Share of the questions with all tokens equal."""
        return sum(count == STEPS for count in self.equal) / len(self.equal)


def truths(checkpoint: Checkpoint, count: int = QUESTIONS) -> Iterator[Truth]:
    """Of the first `count` questions of the test split."""
    vision, decoder = (component.load(checkpoint.weights) for component in components(checkpoint))
    assert isinstance(vision, Encoder) and isinstance(decoder, LanguageModel)
    tokenizer = own_tokenizer(checkpoint)
    spec = checkpoint.spec
    for number, item in enumerate(items(count)):
        rows = reference.encode(vision, image.pixels(item.picture, spec.image))
        ids = cut(checkpoint, tokenizer, item.question)
        seen = Embeddings(rows[0], f"torch {number}")
        tokens = tuple(reference.answer(decoder, ids, rows, STEPS)[1].tolist())
        ends = [place for place, token in enumerate(tokens, 1) if token in spec.prompt.stop_ids]
        prompt = tuple(seen if piece is None else Tokens(tuple(piece)) for piece in ids)
        yield Truth(item, prompt, seen, tokens, min(ends, default=STEPS))


def agreement(session: Session, expected: Sequence[Truth]) -> Agreement:
    """Of what a bundle computes with what torch does. Raises ParityError where a bundle computes NaN or infinity."""
    cosines = tuple(
        distance(session.encode_image(truth.item.picture).rows, truth.embeddings.rows)["cosine"] for truth in expected
    )
    if not all(map(math.isfinite, cosines)):
        raise ParityError(f"{session.bundle.path} computes NaN or infinity of a picture", hint="export it again")
    equal = tuple(_equal(session, truth) for truth in expected)
    answers = tuple(count >= truth.ended for count, truth in zip(equal, expected, strict=True))
    return Agreement(cosines, equal, answers)


def _equal(session: Session, truth: Truth) -> int:
    decoder = session.decoder
    decoder.rewind(0)
    logits = decoder.extend(truth.prompt)
    for count, token in enumerate(truth.tokens):
        if int(logits.argmax()) != token:
            return count
        logits = decoder.extend((Tokens((token,)),))
    return STEPS


def table(found: Mapping[str, Agreement]) -> str:
    """A row a bundle, in Markdown."""
    head = ["bundle", "pictures: least cosine", "median", f"{STEPS} tokens equal", "answers equal"]
    rows = [
        [
            name,
            f"{min(one.cosines):.7f}",
            f"{statistics.median(one.cosines):.7f}",
            f"{100 * one.whole:.1f} %",
            f"{100 * sum(one.answers) / len(one.answers):.1f} %",
        ]
        for name, one in found.items()
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", metavar="BUNDLE", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=QUESTIONS, help="questions to ask")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.threads:
        torch.set_num_threads(args.threads)
    expected = list(truths(open_checkpoint(str(CHECKPOINT)), args.count))
    found = {}
    for bundle in args.bundles:
        with edge.load(bundle, threads=args.threads) as session:
            found[bundle.name] = agreement(session, expected)
    log.info(table(found))


if __name__ == "__main__":
    main()
