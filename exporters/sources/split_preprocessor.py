"""preprocessor_config.json of image processors that may split an image, Idefics3's and SmolVLM's, as an ImageSpec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from edge.spec import Fit, ImageSpec
from edge.spec.division import ViewsSpec
from exporters.sources import preprocessor
from exporters.sources.preprocessor import FILES, IRRELEVANT, Processor, agreed, told_in

MOST = 4096  # what an edge is held to besides, in the processors' code
NAMES = ("Idefics3ImageProcessor", "SmolVLMImageProcessor")
MEAN = (0.5, 0.5, 0.5)  # transformers' IMAGENET_STANDARD_MEAN, and _STD
DEFAULTS: Mapping[str, Any] = {
    "do_resize": True,
    "size": {"longest_edge": 4 * 364},
    "max_image_size": {"longest_edge": 364},
    "do_image_splitting": True,
    "resample": 1,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": MEAN,
    "image_std": MEAN,
    "data_format": "channels_first",
}
# How tensors of several images are filled up, what is told of the tiles, and how videos are seen.
_UNSEEN = ("do_pad", "pad_size", "return_row_col_info", "video_sampling", "default_to_square")


def find(folder: Path, size: int) -> tuple[ImageSpec, bool]:
    """What the processor does to an image for a vision encoder of `size`, and whether it splits images in a way that is
    not computed, where one view is.

    Raises CheckpointError on what an ImageSpec cannot say, and on files that disagree.
    """
    processors = [_Splitting(path, told, NAMES[0]) for path, told in told_in((folder,))]
    processors = processors or [_Splitting(Path(FILES[0]), {}, NAMES[0])]
    spec = agreed({one.path: one.spec(size, "crop") for one in processors})
    return spec, spec.views is None and any(one.splits_elsewise for one in processors)


class _Splitting(Processor):
    classes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        f"{name}{kind}": DEFAULTS for name in NAMES for kind in ("", "Fast", "Pil")
    }
    irrelevant = (*IRRELEVANT, *_UNSEEN)

    def spec(self, size: int, fit: Literal["pad", "crop"]) -> ImageSpec:
        found = super().spec(size, fit)
        if found.fit != "long_edge":
            return found
        edge = self._edge("size")
        grid = -(-edge // size)
        views = ViewsSpec(grid, None) if self["do_image_splitting"] and grid > 1 else None
        return replace(found, long_edge=edge, views=views)

    @property
    def splits_elsewise(self) -> bool:
        """Whether images are split as large as they are."""
        return bool(self["do_image_splitting"]) and not self["do_resize"]

    def fitted(self, size: int, fit: Literal["pad", "crop"]) -> Fit:
        """The longer edge becomes `size`, where it is resized at all; then the whole is stretched."""
        if self._edge("max_image_size") != size:
            self.refuse("max_image_size", f"not {size}", f"the vision encoder takes {size}x{size}")
        return "long_edge" if self["do_resize"] else "stretch"

    def _edge(self, name: str) -> int:
        told = preprocessor.edges_of(self[name], square=False)
        edge = told.get("longest_edge") if isinstance(told, dict) and len(told) == 1 else None
        if type(edge) is not int or not 1 <= edge <= MOST:
            self.refuse(name, "no length of the longer edge", f"{{'longest_edge': N}}, of at most {MOST}")
        return edge
