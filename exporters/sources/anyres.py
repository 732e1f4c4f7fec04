"""Anyres of a checkpoint, as LLaVA-NeXT and LLaVA-OneVision have it: what config.json and preprocessor_config.json say
of tiles, as an AnyresSpec."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from edge.errors import CheckpointError
from edge.spec import Fit, ImageSpec
from edge.spec.division import AnyresSpec
from exporters.sources.preprocessor import DEFAULTS, FILES, IRRELEVANT, Processor, agreed, edges_of, told_in

POINTS = "image_grid_pinpoints"
NEXT_POINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))  # transformers' LlavaNextConfig
ONEVISION_POINTS = tuple((384 * high, 384 * wide) for high in range(1, 7) for wide in range(1, 7))
NEXT, ONEVISION = "LlavaNextImageProcessor", "LlavaOnevisionImageProcessor"
_RANGE = re.compile(r"\((\d{1,2})x(\d{1,2})\).*\((\d{1,2})x(\d{1,2})\)")  # "(1x1),...,(6x6)"
_MOST_TEXT = 1 << 14


def most_tiles(key: str, value: object) -> int | None:
    """Of `anyres_max_N` N, None of `anyres`. Raises CheckpointError on anything else."""
    match = re.fullmatch(r"anyres(?:_max_([1-9]\d{0,2}))?", value) if isinstance(value, str) else None
    if match is None:
        raise CheckpointError(f"{key} {value!r} is not supported", hint="anyres_max_9, as LLaVA-OneVision; or anyres")
    return int(match[1]) if match[1] else None


def spec(points: object, grid: int, rows: int, size: int, most: int | None, *, wide_first: bool) -> AnyresSpec:
    """Of image_grid_pinpoints, which are pairs of pixels: height and width, or with `wide_first` as LLaVA's own code
    has them.

    grid: patches a side of a view.
    rows: embeddings that a view gives: one of each patch.
    size: pixels of a view.
    most: of `most_tiles`.

    Raises CheckpointError.
    """
    if rows != grid**2:
        raise CheckpointError(
            f"a view of {grid} x {grid} patches gives {rows} embeddings, which are not laid out as lines",
            hint="checkpoints whose projector keeps every patch, and no class token",
        )
    told: Any = _spelled(points, size) if isinstance(points, str) and wide_first else points
    pairs = [pair for pair in told if _is_pair(pair)] if isinstance(told, list | tuple) else []
    if not pairs or len(pairs) < len(told) or any(edge % size for pair in pairs for edge in pair):
        raise CheckpointError(
            f"{POINTS} is {points!r}"[:240], hint=f"a list of pairs of pixels, each a multiple of {size}"
        )
    grids = [(high // size, wide // size) for high, wide in (pair[::-1] if wide_first else pair for pair in pairs)]
    found = AnyresSpec(tuple(dict.fromkeys(grids)), grid, most, None)
    if faults := found.faults(size, None):
        raise CheckpointError(f"{POINTS}: {faults[0]}", hint="as the published checkpoints")
    return found


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)


def _spelled(text: str, size: int) -> Any:
    """LLaVA's ranges of grids, or a list as Python writes it."""
    if match := _RANGE.fullmatch(text.strip()):
        first, last = match.groups()[:2], match.groups()[2:]
        columns, rows = (range(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))
        return [(column * size, row * size) for column in columns for row in rows]
    try:
        return ast.literal_eval(text) if len(text) <= _MOST_TEXT else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def find(folder: Path, size: int, kind: str, views: AnyresSpec, points: object) -> ImageSpec:
    """What the processor does to an image for a vision encoder of `size`; without a file, what the class `kind` does by
    default. An image of one view is padded to a square, as its code does with several in a question.

    Raises CheckpointError on what an ImageSpec cannot say, on files that disagree, and on other grids than the config's
    `points`.
    """
    processors = [_Tiling(path, told, kind) for path, told in told_in((folder,))]
    for one in processors:
        if list(map(list, one[POINTS])) != list(map(list, points)):  # type: ignore[call-overload]
            raise CheckpointError(
                f"{one.path.name} and config.json disagree on {POINTS}",
                hint="keep the one that the checkpoint was trained with",
            )
    specs = {one.path: one.spec(size, "pad") for one in processors or [_Tiling(Path(FILES[0]), {}, kind)]}
    return replace(agreed(specs), views=views)


class _Tiling(Processor):
    classes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **{f"{NEXT}{kind}": {**DEFAULTS, "do_pad": True, POINTS: NEXT_POINTS} for kind in ("", "Fast", "Pil")},
        **{
            f"{ONEVISION}{kind}": {
                **DEFAULTS,
                "size": {"height": 384, "width": 384},
                "do_center_crop": False,
                "crop_size": None,
                "do_pad": True,
                POINTS: ONEVISION_POINTS,
            }
            for kind in ("", "Fast", "Pil")
        },
    }
    irrelevant = (*IRRELEVANT, "pad_size")  # `do_pad` fills up tensors of images that have fewer tiles

    def fitted(self, size: int, fit: Literal["pad", "crop"]) -> Fit:
        """Tiles are of the vision encoder's size when they are cut: no step after that changes them."""
        square, hint = {"height": size, "width": size}, f"the vision encoder takes {size}x{size}"
        if self.told.get("size") is not None or self.told.get("crop_size") is not None:
            if edges_of(self["size"], square=False) not in ({"shortest_edge": size}, square):
                self.refuse("size", f"not {size}", hint)
            if self["crop_size"] is not None and edges_of(self["crop_size"], square=True) != square:
                self.refuse("crop_size", f"not {size}", hint)
        return fit
