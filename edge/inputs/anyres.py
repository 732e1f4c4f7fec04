"""Anyres tiles (arXiv 2408.03326): which grid an image is cut by, its tiles, and their embeddings as lines.

The tiles' embeddings lie beside each other as the tiles do, as one field. What padding gave of it is cut off, the rest
is resized where it is too large, and read line by line, with a newline behind each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge.inputs.image import RESAMPLE
from edge.spec import ImageSpec
from edge.spec.division import AnyresSpec

Rows = NDArray[np.float32]
_SHRINKS = 1.1  # times as long and as high as it may be, from which on a field is resized


@dataclass(frozen=True)
class Lines:
    """What is kept of a field of embeddings, and what it becomes."""

    grid: tuple[int, int]  # rows and columns of tiles
    top: int  # embeddings that are cut off, at the bottom as many
    left: int  # and at the right
    height: int  # of what it becomes
    width: int  # without newlines

    @property
    def tokens(self) -> int:
        """With newlines."""
        return self.height * (self.width + 1)


def divided(width: int, height: int, spec: AnyresSpec, size: int, most: int | None) -> Lines | None:
    """By the grid, of those that take `most` embeddings or fewer with the whole, on which an image of these pixels
    keeps most of its own, and then wastes least. None where there is no such grid. Tiles have `size` pixels a side."""
    best, found = (-1.0, -1.0), None
    for rows, columns in spec.grids:
        lines = _lines(width, height, (rows, columns), spec)
        if most is not None and spec.side**2 + lines.tokens > most:
            continue
        high, wide = rows * size, columns * size
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        if (kept, -wide * high) > best:
            best, found = (kept, -wide * high), lines
    return found


def _lines(width: int, height: int, grid: tuple[int, int], spec: AnyresSpec) -> Lines:
    high, wide = (tiles * spec.side for tiles in grid)
    top = left = 0
    # Rounded first, as transformers does: what should be a whole number may be a little less.
    if width / height > wide / high:
        top = (high - int(round(height * (wide / width), 7))) // 2
    else:
        left = (wide - int(round(width * (high / height), 7))) // 2
    high, wide = high - 2 * top, wide - 2 * left
    if spec.most_tiles is not None:
        ratio = math.sqrt(high * wide / (spec.most_tiles * spec.side**2))
        if ratio > _SHRINKS:
            high, wide = max(1, int(high // ratio)), max(1, int(wide // ratio))
    return Lines(grid, top, left, high, wide)


def tiles(image: Image.Image, spec: ImageSpec, grid: tuple[int, int]) -> list[Image.Image]:
    """Row after row, of the image as large as the grid allows, in the middle of black."""
    high, wide = (count * spec.size for count in grid)
    across, down = wide / image.width, high / image.height
    if across < down:
        fitted = wide, min(math.ceil(image.height * across), high)
    else:
        fitted = min(math.ceil(image.width * down), wide), high
    canvas = Image.new("RGB", (wide, high))
    canvas.paste(image.resize(fitted, RESAMPLE[spec.resample]), ((wide - fitted[0]) // 2, (high - fitted[1]) // 2))
    corners = ((left, top) for top in range(0, high, spec.size) for left in range(0, wide, spec.size))
    return [canvas.crop((left, top, left + spec.size, top + spec.size)) for left, top in corners]


def joined(views: Sequence[Rows], lines: Lines) -> Rows:
    """The embeddings f32 [N, hidden] of an image: those of the whole, and the lines.

    views: of the whole, then of each tile, f32 [side * side + 1, hidden], of which the last is the newline.
    """
    (whole, *rest), newline = views, views[0][-1]
    rows, columns = lines.grid
    side, hidden = math.isqrt(len(whole) - 1), whole.shape[1]
    field = np.stack([tile[:-1] for tile in rest]).reshape(rows, columns, side, side, hidden)
    field = field.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, hidden)
    field = field[lines.top : rows * side - lines.top, lines.left : columns * side - lines.left]
    field = _resized(field, lines.height, lines.width)
    ended = np.concatenate([field, np.broadcast_to(newline, (lines.height, 1, hidden))], axis=1)
    return np.concatenate([whole[:-1], ended.reshape(-1, hidden)])


def _resized(field: Rows, height: int, width: int) -> Rows:
    """Bilinear without antialiasing, as torch's interpolate does it."""
    for axis, size in ((0, height), (1, width)):
        old = field.shape[axis]
        if size == old:
            continue
        at = np.float32(old / size) * (np.arange(size, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
        at = np.maximum(at, np.float32(0))
        first = np.minimum(at.astype(np.int64), old - 1)
        share = np.expand_dims(at - first.astype(np.float32), (1, 2) if axis == 0 else (0, 2))
        second = np.minimum(first + 1, old - 1)
        field = (1 - share) * field.take(first, axis) + share * field.take(second, axis)
    return field
