"""An image becomes views: the whole and tiles of the vision encoder's size, or the whole alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge.inputs import anyres, ratio, slices
from edge.inputs.anyres import Lines
from edge.inputs.image import FITS, RESAMPLE, Source, normalised, open_image, scaled
from edge.spec import ImageSpec, VLMSpec
from edge.spec.division import AnyresSpec, RatioSpec, SlicesSpec


@dataclass(frozen=True, eq=False)
class Views:
    """Tiles row after row, and the whole; the whole, and slices; the whole, and tiles whose embeddings become `lines`;
    or the whole alone."""

    pixels: tuple[NDArray[np.float32], ...]  # [1, 3, size, size] each, or patches
    grid: tuple[int, int] | None = None  # rows and columns of tiles that are views of their own in the prompt
    lines: Lines | None = None

    def tokens(self, one: int) -> int:
        """Rows of embeddings that the image gives, of views that give `one` each."""
        return one * len(self.pixels) if self.lines is None else one - 1 + self.lines.tokens


def views(source: Source, spec: VLMSpec, image_tokens: int | None = None) -> Views:
    """Of an image that takes `image_tokens` embeddings or fewer, None: as many as the spec allows. Where its tiles are
    more, it is divided into fewer, larger ones. Raises ImageError."""
    image, how = open_image(source), spec.image.views
    most = how.image_tokens if how and image_tokens is None else image_tokens
    if isinstance(how, AnyresSpec):
        lines = anyres.divided(image.width, image.height, how, spec.image.size, most)
        if lines is not None:
            shown = (FITS["stretch"](image, spec.image), *anyres.tiles(image, spec.image, lines.grid))
            return Views(_normalised(shown, spec.image), lines=lines)
    elif isinstance(how, RatioSpec):
        tiles = how.most_tiles(spec.prompt.image_tokens, most)
        grid = ratio.grid(image.width, image.height, spec.image.size, how.tiles[0], tiles)
        if grid != (1, 1):
            shown = (*ratio.tiles(image, spec.image, grid), FITS["stretch"](image, spec.image))
            return Views(_normalised(shown, spec.image))
    elif isinstance(how, SlicesSpec):
        allowed = how.most_slices(spec.prompt.image_tokens, most)
        cut = slices.grid(image.width, image.height, spec.image.size, allowed)
        if cut is not None and spec.image.patches is not None:
            shown = (FITS["patches"](image, spec.image), *slices.slices(image, spec.image, spec.image.patches, cut))
            return Views(_normalised(shown, spec.image), cut)
    elif how is not None:
        count = None if most is None else most // spec.prompt.image_tokens
        if (sizes := _sizes(image.width, image.height, spec.image, how.grid, count)) is not None:
            return _grid(image, spec.image, sizes)
    return Views(_normalised((FITS[spec.image.fit](image, spec.image),), spec.image))


def _grid(image: Image.Image, spec: ImageSpec, sizes: tuple[tuple[int, int], ...]) -> Views:
    for size in sizes:
        image = image.resize(size, RESAMPLE[spec.resample])
    side = spec.size
    rows, columns = image.height // side, image.width // side
    corners = ((side * column, side * row) for row in range(rows) for column in range(columns))
    cut = [image.crop((left, top, left + side, top + side)) for left, top in corners]
    whole: Image.Image = image.resize((side, side), RESAMPLE[spec.resample])
    return Views(_normalised((*cut, whole), spec), (rows, columns))


def _normalised(shown: tuple[Image.Image, ...], spec: ImageSpec) -> tuple[NDArray[np.float32], ...]:
    return tuple(normalised(view, spec) for view in shown)


def _sizes(width: int, height: int, spec: ImageSpec, grid: int, most: int | None) -> tuple[tuple[int, int], ...] | None:
    """What an image is resized to, one after another, before it is cut; None where no division has so few views."""
    for tiles in range(grid, 1, -1):
        edge = spec.long_edge if tiles == grid and spec.long_edge is not None else tiles * spec.size
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
