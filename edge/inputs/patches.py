"""A view that keeps its image's ratio: how large it is, and its patches in one row (arXiv 2307.06304)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge.spec import ImageSpec
from edge.spec.division import PatchesSpec


def size(width: float, height: float, spec: ImageSpec, patches: PatchesSpec) -> tuple[int, int]:
    """Width and height of a view of an image of these pixels: whole patches, the nearest to its ratio and to as many
    pixels as the square has, and `longest` patches along an edge at most."""
    ratio = width / height
    high = int(spec.size / math.sqrt(ratio))
    wide = int(high * ratio)
    across, down = (min(max(round(edge / patches.side), 1), patches.longest) for edge in (wide, high))
    return across * patches.side, down * patches.side


def packed(view: NDArray[np.float32], patches: PatchesSpec) -> NDArray[np.float32]:
    """A view f32 [3, H, W] as f32 [1, 1, most, 3 * side² + 5].

    Each patch is its pixels channel by channel, its row and column in the encoder's table, its own row and column, and
    0; row after row. Behind them stand zeros, of which the last is 1.
    """
    side, (_, high, wide) = patches.side, view.shape
    down, across = high // side, wide // side
    cut = view.reshape(3, down, side, across, side).transpose(1, 3, 0, 2, 4)
    found = np.zeros((1, 1, patches.most, patches.width), np.float32)
    found[0, 0, : down * across, :-5] = cut.reshape(down * across, -1)
    row, column = np.divmod(np.arange(down * across), across)
    # By whole numbers: fractions in float32 fall beside the bound of a position on some processors.
    table = row * patches.table // down, column * patches.table // across
    found[0, 0, : down * across, -5:-1] = np.stack([*table, row, column], axis=1)
    found[0, 0, down * across :, -1] = 1
    return found
