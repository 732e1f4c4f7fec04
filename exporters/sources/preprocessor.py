"""preprocessor_config.json: what the image processor of a checkpoint does to an image, as an ImageSpec.

Every field that changes pixels is honoured or refused by name. Defaults are those of transformers' class.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

from edge.errors import CheckpointError
from edge.spec import Fit, ImageSpec, Resample
from exporters.checkpoints import background
from exporters.sources.checkpoint import read_json, read_optional_json
from exporters.sources.published import MEAN, STD

FILES = ("preprocessor_config.json", "processor_config.json")  # in the second, under "image_processor"
RESAMPLE: dict[int, Resample] = {3: "bicubic", 2: "bilinear", 1: "lanczos"}  # Pillow's numbers
TYPES = ("image_processor_type", "feature_extractor_type")  # the second is the first's name before transformers 4.26
DEFAULTS: Mapping[str, Any] = {  # of CLIPImageProcessor
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "use_square_size": False,
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": MEAN,
    "image_std": STD,
    "do_pad": False,
    "pad_size": None,
    "data_format": "channels_first",
}
SIGLIP_DEFAULTS: Mapping[str, Any] = {
    **DEFAULTS,
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "crop_size": None,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
CLIP, LLAVA, SIGLIP = "CLIPImageProcessor", "LlavaImageProcessor", "SiglipImageProcessor"
# The names of a processor's class -> its defaults. LLaVA's is CLIP's, but `do_pad` makes the image square at first.
PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys((CLIP, f"{CLIP}Fast", f"{CLIP}Pil", "CLIPFeatureExtractor"), DEFAULTS),
    **dict.fromkeys((LLAVA, f"{LLAVA}Fast", f"{LLAVA}Pil"), DEFAULTS),
    **dict.fromkeys((SIGLIP, f"{SIGLIP}Fast", f"{SIGLIP}Pil"), SIGLIP_DEFAULTS),
}
# Every image is RGB and channels-last before it comes here, so the first two change nothing; nor does the rest, which
# says how and where a processor runs or what it is called.
IRRELEVANT = (
    "do_convert_rgb",
    "input_data_format",
    "processor_class",
    "transformers_version",
    "model_input_names",
    "return_tensors",
    "device",
    "disable_grouping",
    "image_seq_length",
    "use_fast",
    "name_or_path",
)


def find(folders: Iterable[Path], size: int, fit: Literal["pad", "crop"], processor: str = CLIP) -> ImageSpec:
    """What the processors in the folders do to an image that a vision encoder of `size` sees; without one, what the
    class `processor` does by default, which is also the class of a file that names none.

    `fit` says what happens before: "pad" makes the image square. Raises CheckpointError on what an ImageSpec cannot
    say, and on files that disagree.
    """
    specs = {path: Processor(path, told, processor).spec(size, fit) for path, told in told_in(folders)}
    return agreed(specs) if specs else Processor(Path(FILES[0]), {}, processor).spec(size, fit)


def agreed(specs: Mapping[Path, ImageSpec]) -> ImageSpec:
    """What all of these files say. Raises CheckpointError where two disagree."""
    first, *others = specs
    for other in others:
        if specs[other] != specs[first]:
            raise CheckpointError(
                f"{first} and {other} disagree: {specs[first]} and {specs[other]}",
                hint="keep the one that the checkpoint was trained with",
            )
    return specs[first]


def told_in(folders: Iterable[Path]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The fields of each file that describes an image processor."""
    for folder in dict.fromkeys(folders):
        if (path := folder / FILES[0]).is_file():
            yield path, read_json(path)
        if (inner := read_optional_json(path := folder / FILES[1]).get("image_processor")) is not None:
            if not isinstance(inner, dict):
                raise CheckpointError(f"{path}: image_processor is {inner!r}", hint="it must be a JSON object")
            yield path, inner


@dataclass(frozen=True)
class Processor:
    """An image processor that a file describes."""

    path: Path
    told: Mapping[str, Any]  # the file's own fields
    usual: str  # the class of a file that names none
    classes: ClassVar[Mapping[str, Mapping[str, Any]]] = PROCESSORS
    irrelevant: ClassVar[Collection[str]] = IRRELEVANT

    @property
    def kind(self) -> str:
        named = (self.told.get(name) for name in TYPES)
        return next((str(kind) for kind in named if kind is not None), self.usual)

    def __getitem__(self, name: str) -> Any:
        default = self.classes[self.kind][name]
        value = self.told.get(name, default)
        # As transformers has it, null switches a step off and is no number; elsewhere it stands for the default.
        return default if value is None and not isinstance(default, bool | int | float) else value

    def refuse(self, name: str, why: str, hint: str) -> NoReturn:
        raise CheckpointError(f"{self.path.name} has {name} {self[name]!r}: {why}", hint=hint)

    def spec(self, size: int, fit: Literal["pad", "crop"]) -> ImageSpec:
        self._require_known()
        found = self.fitted(size, fit)
        if type(self["resample"]) is not int or self["resample"] not in RESAMPLE:
            self.refuse("resample", "no such filter is computed", "1 (Lanczos), 2 (bilinear) or 3 (bicubic)")
        told_mean = self._three("image_mean", zero=True)
        mean, std = self._normalised(told_mean, self._three("image_std", zero=False))
        return ImageSpec(size, found, background(told_mean), RESAMPLE[self["resample"]], mean, std)

    def _require_known(self) -> None:
        for name in TYPES:
            if (kind := self.told.get(name)) is not None and kind not in tuple(self.classes):
                raise CheckpointError(
                    f"{self.path.name} has {name} {kind!r}: another processor, which is not computed",
                    hint=f"one of: {', '.join(self.classes)}",
                )
        defaults = self.classes[self.kind]
        for name, value in self.told.items():
            known = name in defaults or name in self.irrelevant or name in TYPES or name.startswith("_")
            # What a later processor can do besides is harmless where it is switched off.
            if not known and value is not None and not (name.startswith("do_") and value is False):
                raise CheckpointError(
                    f"{self.path.name} has {name} {value!r}: {self.kind} has no such setting",
                    hint="take the field out if the checkpoint was trained without it",
                )
        for name, default in defaults.items():
            if isinstance(default, bool) and not isinstance(self[name], bool | None):
                self.refuse(name, "neither true nor false", "true or false")
        if self["data_format"] != "channels_first":
            self.refuse("data_format", "the vision encoder takes channels first", "channels_first")

    def fitted(self, size: int, fit: Literal["pad", "crop"]) -> Fit:
        """How the image becomes the vision encoder's square; nothing is cut off but by "crop"."""
        square, hint = (
            {"height": size, "width": size},
            f"the vision encoder takes {size}x{size}: size and crop_size {size}",
        )
        pads_first = self.kind.startswith(LLAVA) and self["do_pad"]
        if pads_first:
            fit = "pad"
        if not self["do_resize"]:
            self.refuse("do_resize", "images that are not resized do not fit the vision encoder", "true")
        if self["use_square_size"]:
            self.refuse("use_square_size", "its size is not told", hint)
        edges = edges_of(self["size"], square=self["default_to_square"])
        # Neither is told: no other size than the vision encoder's own would work.
        if self.told.get("size") is not None or self.told.get("crop_size") is not None:
            if edges not in ({"shortest_edge": size}, square):
                self.refuse("size", f"not {size}", hint)
            if self["do_center_crop"] and edges_of(self["crop_size"], square=True) != square:
                self.refuse("crop_size", f"not {size}", hint)
        both = isinstance(edges, dict) and "height" in edges
        if not self["do_center_crop"] and fit == "crop" and not both:
            self.refuse("do_center_crop", "images that are not square would not fit the vision encoder", "true")
        padded = self["pad_size"]
        if self["do_pad"] and not pads_first and padded is not None and edges_of(padded, square=True) != square:
            self.refuse("pad_size", "images are not padded after they are cropped", hint)
        return "stretch" if both and fit == "crop" else fit

    def _three(self, name: str, *, zero: bool) -> tuple[float, float, float]:
        """One number for each channel; a single one stands for all."""
        value = self[name]
        numbers = list(value) if isinstance(value, list | tuple) else [value] * 3
        lowest = 0.0 if zero else math.ulp(0.0)
        if len(numbers) != 3 or not all(type(n) in (int, float) and lowest <= n < 1e30 for n in numbers):
            self.refuse(name, "not what an image has", f"three numbers {'from' if zero else 'above'} 0")
        red, green, blue = map(float, numbers)
        return red, green, blue

    def _normalised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Any, Any]:
        """Mean and std of (value / 255 - mean) / std that equal (value * rescale_factor - image_mean) / image_std."""
        factor = self["rescale_factor"] if self["do_rescale"] else 1.0
        if type(factor) not in (int, float) or not 1e-30 < factor < 1e30:
            self.refuse("rescale_factor", "not a factor that an image can have", "0.00392156862745098 (1 / 255)")
        if not self["do_normalize"]:
            mean, std = (0.0,) * 3, (1.0,) * 3
        scale = 1.0 if factor == 1 / 255 else 255 * factor
        return tuple(m / scale for m in mean), tuple(s / scale for s in std)


def edges_of(value: Any, *, square: bool) -> Any:
    """A size as a mapping, as transformers reads one number or two."""
    if type(value) is int:
        return {"height": value, "width": value} if square else {"shortest_edge": value}
    if isinstance(value, list) and len(value) == 2:
        return {"height": value[0], "width": value[1]}
    return {name: edge for name, edge in value.items() if edge is not None} if isinstance(value, dict) else value
