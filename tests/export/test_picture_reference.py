"""The stored arrays of tests/data/preprocessing.npz are what transformers computes; edge.inputs.image too, at any size.

`python tests/export/test_picture_reference.py` writes the file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge.inputs.image import pixels
from edge.spec import ImageSpec

STORED = Path(__file__).parents[1] / "data" / "preprocessing.npz"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SPEC = ImageSpec(32, "pad", (122, 116, 104), "bicubic", MEAN, STD)


def picture(width: int, height: int) -> np.ndarray:
    rng = np.random.default_rng(width * 10_000 + height)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)).resize((width, height))
    return np.clip(np.asarray(coarse).astype(int) + rng.integers(-40, 40, (height, width, 3)), 0, 255).astype(np.uint8)


def reference(array: np.ndarray, fit: str, size: int) -> np.ndarray:
    """The published preprocessing: the picture is made square first, or not; then CLIP's processor takes it."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = Image.fromarray(array)
    if fit == "pad" and image.width != image.height:
        side = max(image.size)
        square = Image.new("RGB", (side, side), tuple(int(m * 255) for m in MEAN))
        offset = (0, (side - image.height) // 2) if image.width > image.height else ((side - image.width) // 2, 0)
        square.paste(image, offset)
        image = square
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return np.asarray(processor(image, return_tensors="np")["pixel_values"], dtype=np.float32)


def build() -> dict[str, np.ndarray]:
    shapes = {"wide": picture(61, 47), "tall": picture(38, 83)}
    arrays = {f"{name}.{fit}": reference(p, fit, 32) for name, p in shapes.items() for fit in ("pad", "crop")}
    return shapes | arrays


def test_the_stored_arrays_are_what_transformers_computes():
    stored = np.load(STORED)
    built = build()
    assert set(stored.files) == set(built)
    for name, array in built.items():
        np.testing.assert_allclose(stored[name], array, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("shape", [(640, 480), (481, 641), (336, 336), (1000, 337), (33, 320), (1, 7), (1, 1)])
def test_pixels_are_the_published_ones_at_full_size(shape, fit):
    array = picture(*shape)
    ours = pixels(array, replace(SPEC, size=336, fit=fit))
    np.testing.assert_allclose(ours, reference(array, fit, 336), atol=2e-6)


if __name__ == "__main__":
    np.savez_compressed(STORED, **build())
