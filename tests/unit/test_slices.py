"""Slices and patches: grids and sizes worked out by hand, and how a view's patches are laid out, one by one."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from edge.inputs import patches, slices
from edge.inputs.image import pixels
from edge.spec import ImageSpec
from edge.spec.division import PatchesSpec, SlicesSpec

HOW = PatchesSpec(14, 128, 1080, 70)
SPEC = ImageSpec(448, "patches", (127,) * 3, "bicubic", (0.5,) * 3, (0.5,) * 3, views=SlicesSpec(9, None), patches=HOW)


@pytest.mark.parametrize(
    ("width", "height", "most", "expected"),
    [
        (448, 448, 9, None),  # as many pixels as a view
        (449, 448, 9, (1, 2)),  # more: of 2 and 3 slices
        (600, 600, 9, (2, 1)),  # of 2 slices, one beside the other or below it, the first as near
        (1344, 896, 9, (2, 3)),
        (896, 1344, 9, (3, 2)),
        (4000, 3000, 9, (3, 3)),  # 60 times its pixels: 9 slices or 8, whose 2 x 4 is further from 4/3
        (9000, 500, 9, (1, 9)),
        (500, 9000, 9, (9, 1)),
        (4000, 3000, 1, None),
        (4000, 3000, 2, (1, 2)),
        (4000, 3000, 0, None),
    ],
)
def test_the_grid_of_an_image(width, height, most, expected):
    assert slices.grid(width, height, 448, most) == expected


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (448, 448, (448, 448)),
        (1, 1, (448, 448)),
        (400, 300, (518, 392)),  # 387 x 516: 27.6 and 36.9 patches
        (300, 400, (392, 518)),
        (100, 1, (1792, 42)),  # 44 x 4400: 3 patches, and no more than 128
        (1, 100000, (14, 1792)),
    ],
)
def test_the_size_of_a_view(width, height, expected):
    assert patches.size(width, height, SPEC, HOW) == expected


def test_a_slice_is_a_view_of_its_own():
    """1000 x 700 by 2 columns: slices of 500 x 700, seen as 26 x 38 patches of 378 x 529 pixels."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (700, 1000, 3), dtype=np.uint8))
    left, right = slices.slices(image, SPEC, HOW, (1, 2))
    assert left.size == right.size == (27 * 14, 38 * 14)
    whole = image.resize((2 * 27 * 14, 38 * 14), Image.Resampling.BICUBIC)
    assert np.array_equal(np.concatenate([np.asarray(left), np.asarray(right)], axis=1), np.asarray(whole))


def test_patches_are_packed_row_after_row():
    view = np.arange(3 * 6 * 4, dtype=np.float32).reshape(3, 6, 4) + 1
    found = patches.packed(view, PatchesSpec(2, 4, 8, 5))
    assert found.shape == (1, 1, 8, 17) and found.dtype == np.float32
    for number in range(6):
        row, column = divmod(number, 2)
        patch = found[0, 0, number]
        expected = [view[c, 2 * row + y, 2 * column + x] for c in range(3) for y in range(2) for x in range(2)]
        place = [int(Fraction(5 * row, 3)), int(Fraction(5 * column, 2)), row, column, 0]
        assert patch.tolist() == [*expected, *place]
    assert found[0, 0, 6:].tolist() == [[0.0] * 16 + [1.0]] * 2


def test_pixels_of_one_view():
    image = np.full((30, 40, 3), 255, np.uint8)
    small = replace(SPEC, size=28, patches=PatchesSpec(14, 8, 8, 5), views=None)
    found = pixels(image, small)
    assert found.shape == small.view_shape == (1, 1, 8, 593)
    assert (found[0, 0, :4, :588] == 1).all() and found[0, 0, :, -1].tolist() == [0] * 4 + [1] * 4


def test_what_no_reader_could_follow():
    assert SPEC.faults() == []
    assert "1079 patches, and a view may have 1080" in replace(SPEC, patches=replace(HOW, most=1079)).faults()[0]
    assert "of at most 16384" in replace(SPEC, patches=replace(HOW, most=20000)).faults()[0]
    assert "19 slices, of which there may be 2 to 18" in replace(SPEC, views=SlicesSpec(19, None)).faults()[0]
    assert "fit 'stretch' and patches" in replace(SPEC, fit="stretch", views=None).faults()[0]
    assert "fit 'stretch' and views" in replace(SPEC, fit="stretch", patches=None).faults()[0]
    assert "slices, and 448 for the longer edge" in SlicesSpec(9, None).faults(448, 448)[0]
    assert "a table of 0" in replace(HOW, table=0).faults(448)[0]
    assert "3000 along an edge" in replace(HOW, longest=3000).faults(448)[0]
    assert "patches of 449 pixels" in replace(HOW, side=449).faults(448)[0]
    assert "of at most 843" in PatchesSpec(141, 4, 900, 70).faults(448)[0]  # as many numbers as a square has at most
