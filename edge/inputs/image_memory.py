"""Memory that reading an image takes, known from the head of its file before anything is decoded."""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from edge.errors import ImageError
from edge.inputs.image import MAX_PIXELS, MAX_SIDE, Source, head
from edge.spec import ImageSpec
from edge.units import format_size

ALLOWED = 128 << 20  # bytes that any image may take, whatever the plan leaves: a photograph of 14 million pixels does
# Bytes of a pixel: as Pillow keeps it, and what its decoder, a turn or a conversion takes beside; measured
# (`BENCHMARKS.md`).
DECODED, BESIDE = 4, 5
DECODERS = {"AVIF": 7, "JPEG2000": 16, "WEBP": 14}
MOST = (DECODED + max(DECODERS.values())) * MAX_PIXELS + 4 * MAX_SIDE**2  # of the largest image that is read


def needed(width: int, height: int, format: str, spec: ImageSpec) -> int:
    """Bytes at the peak, beside the file's own. `format` as Pillow calls it."""
    pixels, square = width * height, 4 * min(max(width, height), MAX_SIDE) ** 2
    return DECODED * pixels + max(DECODERS.get(format, BESIDE) * pixels, square * (spec.fit == "pad"))


def require_room(source: Source, spec: ImageSpec, room: int) -> None:
    """Raises ImageError where reading an image takes more than so many bytes, or where it cannot be read at all."""
    if room >= MOST:
        return
    width, height, format = _head(source)
    if (bytes_needed := needed(width, height, format, spec)) > room:
        raise ImageError(
            f"an image of {width}x{height} pixels takes {format_size(bytes_needed)} to read, and "
            f"{format_size(room)} of memory are left for it",
            hint="make the image smaller",
        )


def _head(source: Source) -> tuple[int, int, str]:
    """Nothing of what is no image: whoever reads it says so."""
    if isinstance(source, Image.Image):
        return *source.size, ""
    if isinstance(source, np.ndarray):
        return (source.shape[1], source.shape[0], "") if source.ndim >= 2 else (0, 0, "")
    return head(source) if isinstance(source, str | bytes | os.PathLike) else (0, 0, "")
