"""preprocessor_config.json of the image processor that InternVL divides images with, GOT-OCR-2's, as an ImageSpec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from edge.spec import ImageSpec
from edge.spec.division import RatioSpec
from exporters.sources import preprocessor
from exporters.sources.preprocessor import FILES, IRRELEVANT, Processor, agreed, told_in

NAME = "GotOcr2ImageProcessor"
FEWEST, MOST = "min_patches", "max_patches"  # tiles
DEFAULTS: Mapping[str, Any] = {
    **preprocessor.DEFAULTS,
    "size": {"height": 384, "width": 384},
    "do_center_crop": False,
    "crop_size": None,
    "crop_to_patches": False,
    FEWEST: 1,
    MOST: 12,
}


def find(folder: Path, size: int) -> ImageSpec:
    """What the processor does to an image for a vision encoder of `size`.

    InternVL's processor divides every image, whatever `crop_to_patches` says. Raises CheckpointError on what an
    ImageSpec cannot say, and on files that disagree.
    """
    processors = [_Dividing(path, told, NAME) for path, told in told_in((folder,))]
    processors = processors or [_Dividing(Path(FILES[0]), {}, NAME)]
    return agreed({one.path: one.spec(size, "crop") for one in processors})


class _Dividing(Processor):
    classes: ClassVar[Mapping[str, Mapping[str, Any]]] = {f"{NAME}{kind}": DEFAULTS for kind in ("", "Fast", "Pil")}
    irrelevant = IRRELEVANT

    def spec(self, size: int, fit: Literal["pad", "crop"]) -> ImageSpec:
        found = super().spec(size, fit)
        if found.fit != "stretch":
            self.refuse("size", "not a square that an image is stretched to", f"{{'height': {size}, 'width': {size}}}")
        for name in (FEWEST, MOST):
            if type(self[name]) is not int or self[name] < 1:
                self.refuse(name, "not a number of tiles", "1 and 12, as published")
        if self[MOST] == 1:
            return found
        views = RatioSpec((self[FEWEST], self[MOST]), None)
        if faults := views.faults(size, None):
            self.refuse(MOST, f"an image {faults[0]}", "1 and 12, as published")
        return replace(found, views=views)
