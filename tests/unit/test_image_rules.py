"""The rules of docs/bundle.md for an image, followed to the letter in NumPy, give the bits of edge.inputs.image."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
from conftest import SPEC
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge.inputs.image import pixels
from edge.inputs.views import views
from edge.spec import Fit, ImageSpec, Resample
from edge.spec.division import RatioSpec


def kernel(name: str, x: float) -> float:
    x = abs(x)
    if name == "bilinear":
        return max(0.0, 1 - x)
    if name == "lanczos":
        return float(np.sinc(x) * np.sinc(x / 3)) if x < 3 else 0.0
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


def along_rows(image: Any, new: int, name: str) -> Any:
    """The horizontal pass, uint8 [H, W, 3] -> [H, new, 3]."""
    old = image.shape[1]
    if old == new:
        return image
    scale = old / new
    stretch = max(1.0, scale)
    support = {"bicubic": 2.0, "bilinear": 1.0, "lanczos": 3.0}[name] * stretch
    made = np.empty((len(image), new, 3), np.uint8)
    for i in range(new):
        centre = (i + 0.5) * scale
        first, last = max(0, int(centre - support + 0.5)), min(old, int(centre + support + 0.5))
        weights = np.array([kernel(name, (x - centre + 0.5) / stretch) for x in range(first, last)])
        weights /= sum(weights.tolist())
        fixed = np.floor(np.abs(weights) * 2**22 + 0.5) * np.sign(weights)  # halves away from zero
        total = (image[:, first:last].astype(np.int64) * fixed.astype(np.int64)[None, :, None]).sum(axis=1)
        made[:, i] = np.clip((total + 2**21) >> 22, 0, 255)
    return made


def along_columns(image: Any, new: int, name: str) -> Any:
    return along_rows(image.transpose(1, 0, 2), new, name).transpose(1, 0, 2)


def resized(image: Any, width: int, height: int, name: str, rows_first: bool) -> Any:
    if rows_first:
        return along_columns(along_rows(image, width, name), height, name)
    return along_rows(along_columns(image, height, name), width, name)


def fitted(image: Any, spec: ImageSpec, rows_first: bool, then: bool) -> Any:
    height, width, _ = image.shape
    size = spec.size
    if spec.fit == "pad":
        side = max(width, height)
        square = np.empty((side, side, 3), np.uint8)
        square[:] = spec.background
        left, top = (side - width) // 2, (side - height) // 2
        square[top : top + height, left : left + width] = image
        return resized(square, size, size, spec.resample, rows_first)
    if spec.long_edge is not None:
        ratio = width / height
        other = int(spec.long_edge / ratio) if width >= height else int(spec.long_edge * ratio)
        other = max(1, other + (other % 2 == 1))
        edges = (spec.long_edge, other) if width >= height else (other, spec.long_edge)
        image = resized(image, *edges, spec.resample, rows_first)
        return resized(image, size, size, spec.resample, then)
    cut_x, cut_y = max(0, (width - 16 * height) // 2), max(0, (height - 16 * width) // 2)
    image = image[cut_y : height - cut_y, cut_x : width - cut_x]
    height, width, _ = image.shape
    short = min(height, width)
    width, height = int(size * width / short), int(size * height / short)
    left, top = (width - size) // 2, (height - size) // 2
    return resized(image, width, height, spec.resample, rows_first)[top : top + size, left : left + size]


def by_the_page(image: Any, spec: ImageSpec, orders: tuple[bool, bool]) -> Any:
    """`orders`: whether rows come first, where an image is resized, and where it is once more."""
    values = (fitted(image, spec, *orders) / 255.0 - np.array(spec.mean)) / np.array(spec.std)
    return values.astype(np.float32).transpose(2, 0, 1)[None]


@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    size=st.integers(1, 40),
    fit=st.sampled_from(["pad", "crop", "long_edge"]),
    resample=st.sampled_from(["bicubic", "bilinear", "lanczos"]),
    seed=st.integers(0, 2**32 - 1),
)
@example(width=70, height=2, size=28, fit="crop", resample="bicubic", seed=0)  # its ends are cut
@example(width=70, height=1, size=28, fit="long_edge", resample="lanczos", seed=0)  # less than a row
@example(width=28, height=40, size=28, fit="crop", resample="bilinear", seed=0)  # nothing is resized
@settings(max_examples=150, deadline=None)
def test_the_rules_give_the_very_bits(
    width: int, height: int, size: int, fit: Fit, resample: Resample, seed: int
) -> None:
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
    if seed % 2:
        image = np.where(image < 128, 0, 255).astype(np.uint8)  # edges overshoot
    long_edge = size + 13 if fit == "long_edge" else None
    spec = replace(SPEC.image, size=size, fit=fit, resample=resample, long_edge=long_edge)
    found = pixels(image, spec)
    orders = itertools.product((True, False), repeat=2)
    assert any(np.array_equal(by_the_page(image, spec, order), found) for order in orders)


def grid_by_the_page(width: int, height: int, size: int, fewest: int, most: int) -> tuple[int, int] | None:
    found, least = None, float("inf")
    for tiles in range(fewest, most + 1):
        for columns in (c for c in range(1, tiles + 1) if tiles % c == 0):
            rows = tiles // columns
            differs = abs(width / height - columns / rows)
            if differs < least or (differs == least and 2 * width * height > tiles * size**2):
                found, least = (rows, columns), differs
    return found


def tiled_by_the_page(image: Any, spec: ImageSpec, grid: tuple[int, int], rows_first: bool, then: bool) -> Any:
    rows, columns = grid
    whole = resized(image, columns * spec.size, rows * spec.size, spec.resample, rows_first)
    tiles = [tile for band in np.split(whole, rows, axis=0) for tile in np.split(band, columns, axis=1)]
    seen = np.stack([*tiles, resized(image, spec.size, spec.size, spec.resample, then)])
    values = (seen / 255.0 - np.array(spec.mean)) / np.array(spec.std)
    return values.astype(np.float32).transpose(0, 3, 1, 2)


@given(
    width=st.integers(1, 50),
    height=st.integers(1, 50),
    size=st.integers(1, 12),
    fewest=st.integers(1, 3),
    more=st.integers(1, 7),
    budget=st.none() | st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)
@example(width=12, height=12, size=6, fewest=1, more=7, budget=None, seed=0)  # more tiles of one ratio
@example(width=20, height=10, size=6, fewest=2, more=6, budget=2, seed=0)  # no grid has so few tiles
@settings(max_examples=100, deadline=None)
def test_the_rules_of_tiles_give_the_very_bits(
    width: int, height: int, size: int, fewest: int, more: int, budget: int | None, seed: int
) -> None:
    """`budget`: views that an image may take."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    one, most = SPEC.prompt.image_tokens, fewest + more
    told = RatioSpec((fewest, most), None if budget is None else budget * one)
    spec = replace(SPEC, image=replace(SPEC.image, size=size, fit="stretch", views=told))
    found = views(image, spec)
    grid = grid_by_the_page(width, height, size, fewest, most if budget is None else min(most, budget - 1))
    if grid in (None, (1, 1)):
        assert len(found.pixels) == 1
        return
    orders = itertools.product((True, False), repeat=2)
    seen = np.concatenate(found.pixels)
    assert grid is not None and len(seen) == grid[0] * grid[1] + 1
    assert any(np.array_equal(tiled_by_the_page(image, spec.image, grid, *order), seen) for order in orders)
