"""preprocessor_config.json of MiniCPM-V's image processor, which cuts images into slices, as an ImageSpec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from edge.errors import CheckpointError
from edge.spec import MOST_SIDE, ImageSpec
from edge.spec.division import PatchesSpec, SlicesSpec
from exporters.checkpoints import background
from exporters.sources.preprocessor import FILES, IRRELEVANT, Processor, told_in

NAME = "MiniCPMVImageProcessor"
TOKENS: Mapping[str, str] = {  # what stands around the embeddings of an image, of a slice, and an image's number
    "im_start": "<image>",
    "im_end": "</image>",
    "slice_start": "<slice>",
    "slice_end": "</slice>",
    "im_id_start": "<image_id>",
    "im_id_end": "</image_id>",
}
DEFAULTS: Mapping[str, Any] = {  # its code's
    "max_slice_nums": 9,
    "scale_resolution": 448,
    "patch_size": 14,
    "use_image_id": False,
    "image_feature_size": 64,
    "slice_mode": True,
    "norm_mean": (0.5, 0.5, 0.5),
    "norm_std": (0.5, 0.5, 0.5),
    "version": 2.0,
    "unk": "<unk>",
    "data_format": "channels_first",
    **TOKENS,
}


@dataclass(frozen=True)
class Told:
    """What the processor does to an image, and what it writes around it."""

    size: int  # of a square with as many pixels as a view
    patch: int  # pixels of a patch's edge
    slices: int  # at most
    numbered: bool
    tokens: Mapping[str, str]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def spec(self, patches: PatchesSpec) -> ImageSpec:
        """For an encoder of such patches. Raises CheckpointError on what no reader could follow."""
        views = SlicesSpec(self.slices, None) if self.slices > 1 else None
        paint = background(self.mean)
        found = ImageSpec(self.size, "patches", paint, "bicubic", self.mean, self.std, views=views, patches=patches)
        if faults := found.faults():
            raise CheckpointError(f"{FILES[0]}: an image {faults[0]}", hint="max_slice_nums 9, as published")
        return found


def find(folder: Path, config: Mapping[str, Any], rows: int) -> Told:
    """What the folder's file says, whose fields are held to those of config.json of the same names, and the numbers of
    embeddings that the model gives of a view. Raises CheckpointError on what is not computed, and on contradictions."""
    files = [_Slicing(path, told, NAME) for path, told in told_in((folder,))]
    processor = files[0] if files else _Slicing(Path(FILES[0]), {}, NAME)
    return processor.read(config, rows)


class _Slicing(Processor):
    classes: ClassVar[Mapping[str, Mapping[str, Any]]] = {NAME: DEFAULTS}
    irrelevant = (*IRRELEVANT, "auto_map")

    def read(self, config: Mapping[str, Any], rows: int) -> Told:
        self._require_known()
        for name in ("max_slice_nums", "scale_resolution", "patch_size", "image_feature_size"):
            if type(self[name]) is not int or not 1 <= self[name] <= MOST_SIDE:
                self.refuse(name, "no number of them", f"{DEFAULTS[name]}, as published")
        if self["slice_mode"] is not True:
            self.refuse("slice_mode", "images of any size would be seen as they are", "true, as published")
        if self["image_feature_size"] != rows:
            self.refuse("image_feature_size", f"config.json has query_num {rows}", "the one that it was trained with")
        sliced = config.get("slice_config") or {}
        if not isinstance(sliced, Mapping):
            raise CheckpointError(f"config.json has slice_config {sliced!r}", hint="it must be a JSON object")
        own = ("use_image_id", "patch_size", "slice_mode")
        told = {**sliced, **{name: config[name] for name in own if config.get(name) is not None}}
        for name, value in told.items():
            if name in DEFAULTS and name not in TOKENS and value is not None and value != self[name]:
                self.refuse(name, f"config.json has {value!r}", "the one that it was trained with")
        for name in TOKENS:
            if not isinstance(self[name], str) or not self[name]:
                self.refuse(name, "no token", TOKENS[name])
        mean, std = self._three("norm_mean", zero=True), self._three("norm_std", zero=False)
        return Told(
            size=self["scale_resolution"],
            patch=self["patch_size"],
            slices=self["max_slice_nums"],
            numbered=self["use_image_id"],
            tokens={name: self[name] for name in TOKENS},
            mean=mean,
            std=std,
        )
