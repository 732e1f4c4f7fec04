"""The fixed code that the eye learns to write and the language model learns to read, each without the other.

A cell of the world's 3x3 grid is four by four image tokens; its middle two by two carry the sum of one vector per
attribute (what, colour, size, row, column), and every other token carries the vector "blank". The vectors are
orthogonal, so a sum can be read back by dot products.
"""

import torch
from torch import Tensor

from exporters.demo.world import COLOURS, GRID, LETTERS, SHAPES, SIZES, Scene

WHAT = ("nothing", *SHAPES, *LETTERS, *"0123456789")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "what": WHAT,
    "colour": ("none", *COLOURS),
    "size": ("none", *SIZES),
    "row": ("top", "middle", "bottom"),
    "column": ("left", "middle", "right"),
}
TOKENS_PER_SIDE = 12
_MIDDLE = [4 * cell + step for cell in range(GRID) for step in (1, 2)]  # token rows (or columns) that carry a code
CELL_OF = [(row // 4) * GRID + column // 4 for row in _MIDDLE for column in _MIDDLE]
CODED = [row * TOKENS_PER_SIDE + column for row in _MIDDLE for column in _MIDDLE]  # 36 of the 144 tokens


def labels(scene: Scene) -> list[list[int]]:
    """For each of the nine cells the index of its value in every attribute."""
    cells = [[0, 0, 0, *divmod(place, GRID)] for place in range(GRID * GRID)]
    for thing in scene.things:
        cells[thing.place][:3] = (
            WHAT.index(thing.shape),
            ATTRIBUTES["colour"].index(thing.colour),
            ATTRIBUTES["size"].index(thing.size),
        )
    if scene.sign:
        for slot, character in enumerate(scene.sign.text):
            cells[scene.sign.place + slot][0] = WHAT.index(character)
    return cells


class Codebook:
    """One vector per attribute value, `[values, hidden]`; the sum of five has a root mean square of about 1."""

    def __init__(self, hidden: int, seed: int = 0) -> None:
        values = sum(len(names) for names in ATTRIBUTES.values()) + 1
        generator = torch.Generator().manual_seed(seed)
        basis, _ = torch.linalg.qr(torch.randn(hidden, values, generator=generator))  # orthonormal columns
        self.vectors = basis.T.contiguous() * (hidden / len(ATTRIBUTES)) ** 0.5
        sizes = [len(names) for names in ATTRIBUTES.values()]
        self.spans = dict(zip(ATTRIBUTES, zip(_starts(sizes), sizes, strict=True), strict=True))
        self.blank = self.vectors[-1] * len(ATTRIBUTES) ** 0.5

    def to(self, device: torch.device) -> "Codebook":
        self.vectors, self.blank = self.vectors.to(device), self.blank.to(device)
        return self

    def of(self, attribute: str, value: str) -> Tensor:
        """The vector of one value, `[hidden]`."""
        start, _ = self.spans[attribute]
        return self.vectors[start + ATTRIBUTES[attribute].index(value)]

    def cells(self, marks: Tensor) -> Tensor:
        """Labels `[B, 9, 5]` to the sums of their codes `[B, 9, hidden]`."""
        starts = torch.tensor([start for start, _ in self.spans.values()], device=marks.device)
        return self.vectors[marks + starts].sum(2)

    def image(self, marks: Tensor) -> Tensor:
        """Labels `[B, 9, 5]` to all image tokens `[B, 144, hidden]`."""
        rows = self.blank.expand(marks.shape[0], TOKENS_PER_SIDE**2, -1).clone()
        rows[:, CODED] = self.cells(marks)[:, CELL_OF]
        return rows

    def scores(self, rows: Tensor, attribute: str) -> Tensor:
        """Image rows `[…, hidden]` to logits `[…, values]`: ten for a perfect code, zero for another value's."""
        start, size = self.spans[attribute]
        vectors = self.vectors[start : start + size]
        return rows @ vectors.T * (10 / vectors[0].square().sum())


def _starts(sizes: list[int]) -> list[int]:
    return [sum(sizes[:index]) for index in range(len(sizes))]
