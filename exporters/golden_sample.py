"""The picture and the question that golden is made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import ImageDraw
from PIL.Image import new

from edge.inputs import image
from edge.inputs.calibration import Record
from edge.inputs.views import views
from edge.spec import VLMSpec

QUESTION = "What is in this picture?"


def choose(calibration: Sequence[Record]) -> tuple[NDArray[np.uint8], str]:
    """The first of the user's own pictures and its question, or a drawing. RGB `[H, W, 3]`."""
    if not calibration:
        return drawing(), QUESTION
    return np.asarray(image.open_image(calibration[0].picture)), calibration[0].question


def divided(picture: NDArray[np.uint8], spec: VLMSpec) -> dict[str, int]:
    """Of a picture that a bundle divides: `count` of views, and `image_tokens` of all; empty where it is one view."""
    found = views(picture, spec)
    if (count := len(found.pixels)) == 1:
        return {}
    return {"count": count, "image_tokens": found.tokens(spec.prompt.image_tokens)}


def drawing() -> NDArray[np.uint8]:
    """Wider than high, so that fitting it to a square is proven too."""
    picture = new("RGB", (400, 300), (188, 205, 222))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 210, 400, 300), fill=(96, 140, 84))
    draw.ellipse((40, 90, 170, 220), fill=(200, 48, 40), outline=(60, 20, 20), width=4)
    draw.polygon([(220, 230), (300, 70), (370, 230)], fill=(40, 70, 180))
    draw.line((0, 40, 400, 110), fill=(240, 220, 60), width=9)
    return np.asarray(picture)
