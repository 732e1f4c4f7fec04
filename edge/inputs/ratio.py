"""Tiles by ratio (arXiv 2404.16821, section 3.1): which grid an image is cut by, and its tiles."""

from __future__ import annotations

from PIL import Image

from edge.inputs.image import stretched
from edge.spec import ImageSpec


def grid(width: int, height: int, size: int, fewest: int, most: int) -> tuple[int, int]:
    """Rows and columns of the tiles of `size` pixels a side that an image of these pixels is cut into: of all grids of
    `fewest` to `most` tiles the one whose ratio differs least from the image's. One tile where there is no such grid.

    Of grids that differ as little, the one with more tiles is taken where the image has more than half its pixels.
    """
    found, least = (1, 1), float("inf")
    for rows, columns in _grids(fewest, most):
        differs = abs(width / height - columns / rows)
        larger = differs == least and 2 * width * height > rows * columns * size**2
        if differs < least or larger:
            found, least = (rows, columns), differs
    return found


def _grids(fewest: int, most: int) -> list[tuple[int, int]]:
    """Rows and columns, those of fewer tiles and then those of fewer columns first."""
    columns = range(1, most + 1)
    grids = ((rows, wide) for wide in columns for rows in range(-(-fewest // wide), most // wide + 1))
    return sorted(grids, key=lambda grid: grid[0] * grid[1])


def tiles(image: Image.Image, spec: ImageSpec, grid: tuple[int, int]) -> list[Image.Image]:
    """Row after row, of the image stretched to all of them."""
    high, wide = (count * spec.size for count in grid)
    whole = stretched(image, (wide, high), spec.resample)
    corners = ((left, top) for top in range(0, high, spec.size) for left in range(0, wide, spec.size))
    return [whole.crop((left, top, left + spec.size, top + spec.size)) for left, top in corners]
