"""What activations are looked at with where the user gave no calibration data: images that are drawn, and questions.

Outlier channels hardly depend on the image (arXiv 2208.07339, 2402.17762), so none of these needs to be a photograph;
they are as unlike each other as a few can be: shapes, overlapping leaves with some statistics of natural images
(arXiv 2106.05963), and text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw
from PIL.Image import Image, new

from edge.inputs.calibration import Record
from edge.inputs.image import Source
from exporters import golden_sample

MOST = 3  # images: each costs four passes through torch, and more hardly change what is largest
SIDE = 336
WORDS = ("the quick brown fox jumps over the lazy dog", "0123456789", "ANSWER: forty-two", "Total  18.50", "exit")
TALK = (
    ("What is in this picture?", "A red circle and a blue triangle stand on a green field under a pale sky."),
    ("How many leaves are there, and which colours do they have?", "More than a hundred: green, brown and yellow."),
    ("What does the text say?", "The quick brown fox jumps over the lazy dog. 0123456789."),
)


class Sample(NamedTuple):
    name: str  # for messages
    image: Source
    question: str
    answer: str


def samples(calibration: Sequence[Record]) -> list[Sample]:
    """The first of the user's own images, each with one question, or those that are drawn; golden's is the first."""
    own: dict[Source, Record] = {}
    for record in calibration:
        own.setdefault(record.picture, record)
    if own:
        first = [*own.values()][:MOST]
        return [Sample(f"the image {str(r.picture)!r}", r.picture, r.question, r.answer) for r in first]
    drawn = [golden_sample.drawing(), _leaves(), _page()]
    named = zip(drawn, TALK, strict=True)
    return [Sample(f"the drawn image {index}", image, *talk) for index, (image, talk) in enumerate(named, 1)]


def _leaves() -> NDArray[np.uint8]:
    """Overlapping ellipses, as many of each size as there are in natural images."""
    random = np.random.default_rng(1)
    image = new("RGB", (SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    for _ in range(400):
        radius = 6 / np.sqrt(random.uniform(0.002, 1))
        x, y, stretch = *random.uniform(0, SIDE, 2), random.uniform(0.4, 1)
        colour = random.uniform(0, 255, 3).astype(int)
        box = (x - radius, y - radius * stretch, x + radius, y + radius * stretch)
        draw.ellipse(box, fill=tuple(map(int, colour)))
    return _array(image)


def _page() -> NDArray[np.uint8]:
    image = new("RGB", (SIDE, SIDE), (250, 248, 240))
    draw = ImageDraw.Draw(image)
    for line in range(20):
        draw.text((12, 8 + 16 * line), " ".join(WORDS[line % 2 :: 2]), fill=(20, 20, 30))
    draw.rectangle((200, 200, 320, 300), outline=(180, 20, 20), width=3)
    return _array(image)


def _array(image: Image) -> NDArray[np.uint8]:
    return np.asarray(image)
