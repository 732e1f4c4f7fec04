"""Slices (arXiv 2403.11703, section 3.1): which grid an image is cut by, and its slices, which keep a ratio."""

from __future__ import annotations

import math

from PIL import Image

from edge.inputs import patches
from edge.inputs.image import stretched
from edge.spec import ImageSpec
from edge.spec.division import PatchesSpec


def grid(width: int, height: int, size: int, most: int) -> tuple[int, int] | None:
    """Rows and columns of the slices that an image of these pixels is cut into, None where it is seen whole.

    Of as many slices as it has times the pixels of a view of `size` x `size`, of one more or one fewer, and of `most`
    at most, the grid is taken whose ratio is nearest the image's; the first of equal ones.
    """
    count = min(math.ceil(width * height / (size * size)), most)
    if count <= 1:
        return None
    counts = [number for number in (count - 1, count, count + 1) if 1 < number <= most]
    grids = [(number // wide, wide) for number in counts for wide in range(1, number + 1) if number % wide == 0]
    ratio = math.log(width / height)
    return min(grids, key=lambda grid: abs(ratio - math.log(grid[1] / grid[0])))


def slices(image: Image.Image, spec: ImageSpec, how: PatchesSpec, grid: tuple[int, int]) -> list[Image.Image]:
    """Row after row, of the image stretched to all of them. Each has the size of a view of its own ratio, which is that
    of the image's pixels rounded to as many for each slice."""
    rows, columns = grid
    across, down = max(round(image.width / columns), 1), max(round(image.height / rows), 1)
    wide, high = patches.size(across, down, spec, how)
    whole = stretched(image, (columns * wide, rows * high), spec.resample)
    corners = ((left, top) for top in range(0, rows * high, high) for left in range(0, columns * wide, wide))
    return [whole.crop((left, top, left + wide, top + high)) for left, top in corners]
