"""An image becomes views: tiles of the vision encoder's size and the whole behind them, or the whole alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge.inputs.image import FITS, RESAMPLE, Source, normalised, open_image, scaled
from edge.spec import ImageSpec


@dataclass(frozen=True, eq=False)
class Views:
    """Tiles row after row, and the whole; or the whole alone."""

    pixels: tuple[NDArray[np.float32], ...]  # [1, 3, size, size] each
    grid: tuple[int, int] | None  # rows and columns of tiles; None: the whole alone


def views(source: Source, spec: ImageSpec, most: int | None = None) -> Views:
    """Of an image, `most` views or fewer: where all its tiles are more, it is divided into fewer, larger ones. Raises
    ImageError."""
    image = open_image(source)
    sizes = _sizes(image.width, image.height, spec, most)
    if sizes is None:
        return Views((normalised(FITS[spec.fit](image, spec), spec),), None)
    for size in sizes:
        image = image.resize(size, RESAMPLE[spec.resample])
    side = spec.size
    rows, columns = image.height // side, image.width // side
    corners = ((side * column, side * row) for row in range(rows) for column in range(columns))
    cut = [image.crop((left, top, left + side, top + side)) for left, top in corners]
    whole: Image.Image = image.resize((side, side), RESAMPLE[spec.resample])
    return Views(tuple(normalised(view, spec) for view in (*cut, whole)), (rows, columns))


def _sizes(width: int, height: int, spec: ImageSpec, most: int | None) -> tuple[tuple[int, int], ...] | None:
    """What an image is resized to, one after another, before it is cut; None where no division has so few views."""
    grid, longest = (spec.views.grid, spec.long_edge) if spec.views else (0, None)
    for tiles in range(grid, 1, -1):
        edge = longest if tiles == grid and longest is not None else tiles * spec.size
        first = scaled(width, height, edge)
        whole = _multiples(*first, spec.size)
        if most is None or whole[0] * whole[1] // spec.size**2 + 1 <= most:
            return first, whole
    return None


def _multiples(width: int, height: int, side: int) -> tuple[int, int]:
    """Both edges a multiple of `side`: the longer is rounded up, the other follows it by their ratio, and is too."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        return width, math.ceil(int(width / ratio) / side) * side
    height = math.ceil(height / side) * side
    return math.ceil(int(height * ratio) / side) * side, height
