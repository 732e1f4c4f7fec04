"""An image, in whatever state it arrives, becomes the pixels that the model was trained on."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from edge.errors import ImageError
from edge.inputs import deep_image, image_kinds, patches, tiff_layout
from edge.spec import Fit, ImageSpec, Resample
from edge.types import Array

Source = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

MAX_PIXELS = 178_956_970  # where Pillow itself speaks of a decompression bomb
MAX_EDGE = 1_000_000  # Pillow keeps a pointer for each row: of a very narrow image they outweigh its pixels
MAX_SIDE = 8192  # a longer image is shrunk before it is padded: the square would take gigabytes
MAX_RATIO = 16  # a longer image loses its ends before it is cropped: nothing of them would be left
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
RESAMPLE = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
# Pillow knows more, but some are drawings that it hands to another program (EPS to Ghostscript), and others no image
# that is asked about. TGA has no magic number and comes last.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "JPEG2000", "AVIF", "HEIF", "ICO", "PPM", "TGA")
ARRAYS = "an image as an array is uint8, [H, W], [H, W, 3] RGB or [H, W, 4] RGBA"


def open_image(source: Source) -> Image.Image:
    """The image in RGB, upright, on white where it is transparent; the first frame of an animated file.

    A path, the bytes of a file, a Pillow image (left as it is), or a uint8 array [H, W], [H, W, 3] or [H, W, 4].
    Raises ImageError on anything else and on what cannot be read.
    """
    name = _name(source)
    if isinstance(source, np.ndarray):
        source = _from_array(source, name)
    if isinstance(source, Image.Image):
        with _border(name):
            return _turned(*_flat_and_turn(source, name))
    if not isinstance(source, str | bytes | os.PathLike):
        raise ImageError(f"{name} is not an image", hint="give a path, bytes, a Pillow image or a uint8 array")
    with _border(name, source):
        return _turned(*_read(source, name))


def dimensions(data: bytes) -> tuple[int, int]:
    """Width and height as the file's head tells them; nothing is decoded. Raises ImageError."""
    width, height, _ = head(data)
    return width, height


def head(source: str | bytes | os.PathLike[str]) -> tuple[int, int, str]:
    """Width, height and what Pillow calls the format, as the file's head tells them. Raises ImageError."""
    with _border(_name(source), source), _open(source) as image:
        return *image.size, image.format or ""


def pixels(source: Source, spec: ImageSpec) -> NDArray[np.float32]:
    """float32 [1, 3, size, size]: fitted to the square, resampled as Pillow does, scaled to 0..1, normalised; or the
    patches of what keeps its ratio, as `edge.inputs.patches.packed` gives them."""
    return normalised(FITS[spec.fit](open_image(source), spec), spec)


def normalised(view: Image.Image, spec: ImageSpec) -> NDArray[np.float32]:
    """float32 [1, 3, size, size] of an image of that size: scaled to 0..1, then as `mean` and `std` say; or its patches
    where it keeps its ratio."""
    mean, std = np.array(spec.mean)[:, None], np.array(spec.std)[:, None]
    table = ((np.arange(256) / 255 - mean) / std).astype(np.float32)  # [3, 256]: a channel value has one result
    channels = np.asarray(view).transpose(2, 0, 1)
    found = np.stack([row[channel] for row, channel in zip(table, channels, strict=True)])
    return found[None] if spec.patches is None else patches.packed(found, spec.patches)


def digest(pixels: NDArray[np.float32]) -> str:
    """Equal for equal pixels: what an image's embeddings are remembered by."""
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _pad(image: Image.Image, spec: ImageSpec) -> Image.Image:
    side = max(image.size)
    if side > MAX_SIDE:
        width, height = (max(1, round(edge * MAX_SIDE / side)) for edge in image.size)
        image, side = image.resize((width, height), RESAMPLE[spec.resample]), MAX_SIDE
    square = Image.new("RGB", (side, side), spec.background)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((spec.size, spec.size), RESAMPLE[spec.resample])


def _crop(image: Image.Image, spec: ImageSpec) -> Image.Image:
    # As many pixels from one end as from the other: the middle stays where it was.
    cut_x = max(0, (image.width - MAX_RATIO * image.height) // 2)
    cut_y = max(0, (image.height - MAX_RATIO * image.width) // 2)
    if cut_x or cut_y:
        image = image.crop((cut_x, cut_y, image.width - cut_x, image.height - cut_y))
    short = min(image.size)
    width, height = (int(spec.size * edge / short) for edge in image.size)
    left, top = (width - spec.size) // 2, (height - spec.size) // 2
    resized = image.resize((width, height), RESAMPLE[spec.resample])
    return resized.crop((left, top, left + spec.size, top + spec.size))


def _stretch(image: Image.Image, spec: ImageSpec) -> Image.Image:
    return stretched(image, (spec.size, spec.size), spec.resample)


def stretched(image: Image.Image, size: tuple[int, int], resample: Resample) -> Image.Image:
    """All of an image, resized to this width and height."""
    if image.height > MAX_SIDE and image.width < size[0]:
        # Pillow resizes the rows first: they grow here, and all of them together would take gigabytes.
        image = image.resize((image.width, size[1]), RESAMPLE[resample])
    return image.resize(size, RESAMPLE[resample])


def _long_edge(image: Image.Image, spec: ImageSpec) -> Image.Image:
    image = image.resize(scaled(image.width, image.height, spec.long_edge or spec.size), RESAMPLE[spec.resample])
    return image.resize((spec.size, spec.size), RESAMPLE[spec.resample])


def scaled(width: int, height: int, long_edge: int) -> tuple[int, int]:
    """Width and height of an image whose longer edge becomes `long_edge`; the shorter one is rounded down, and up to an
    even number."""
    ratio = width / height
    short = int(long_edge / ratio) if width >= height else int(long_edge * ratio)
    short = max(1, short + short % 2)
    return (long_edge, short) if width >= height else (short, long_edge)


def _patches(image: Image.Image, spec: ImageSpec) -> Image.Image:
    assert spec.patches is not None  # as `ImageSpec.faults` has it
    return stretched(image, patches.size(*image.size, spec, spec.patches), spec.resample)


FITS: Mapping[Fit, Callable[[Image.Image, ImageSpec], Image.Image]] = {
    "pad": _pad,
    "crop": _crop,
    "stretch": _stretch,
    "long_edge": _long_edge,
    "patches": _patches,
}


def _open(source: str | bytes | os.PathLike[str]) -> ImageFile.ImageFile:
    if _usual(source):
        with suppress(UnidentifiedImageError):
            return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS[:2])
    Image.init()  # imports all that Pillow has: 23 ms that JPEG and PNG do not wait for
    formats = [format for format in FORMATS if format in Image.OPEN]
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)


def _usual(source: str | bytes | os.PathLike[str]) -> bool:
    """Whether a file begins as JPEG or PNG do, which come first in `FORMATS`. A stream is not looked into: what was
    read of it would be lost."""
    if isinstance(source, bytes):
        return source.startswith(image_kinds.USUAL)
    with suppress(OSError, ValueError):  # whoever opens it says so
        if os.path.isfile(source):
            with open(source, "rb") as file:
                return file.read(image_kinds.MAGIC).startswith(image_kinds.USUAL)
    return False


def _read(source: str | bytes | os.PathLike[str], name: str) -> tuple[Image.Image, Image.Transpose | None]:
    # A function of its own: what was decoded is freed before what is left of it is turned, which takes a copy.
    with _open(source) as image:
        return _flat_and_turn(image, name, partial(_open, source))


def _flat_and_turn(
    image: Image.Image, name: str, open_again: deep_image.Opener | None = None
) -> tuple[Image.Image, Image.Transpose | None]:
    """RGB as it is stored, never `image` itself unless it is to be turned, and how to turn it."""
    if 0 in image.size:
        raise ImageError(f"{name} has no pixels: {image.width}x{image.height}", hint="give another image")
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_EDGE:
        raise ImageError(
            f"{name} has {image.width}x{image.height} pixels; at most {MAX_PIXELS:,} are read, {MAX_EDGE:,} a side",
            hint="make the image smaller",
        )
    layout = tiff_layout.check(image, name)
    flat = _flat(image, name, layout, open_again)
    turn = TURNS.get(_orientation(image))
    return flat.copy() if flat is image and turn is None else flat, turn


def _turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)


def _flat(
    image: Image.Image, name: str, layout: tiff_layout.Layout | None, open_again: deep_image.Opener | None
) -> Image.Image:
    """RGB, on white where it is transparent; `image` itself where it is that already."""
    if image.mode == "F":
        raise ImageError(f"{name} has floating-point pixels, which do not say what white is", hint=tiff_layout.SCALE)
    raw = deep_image.raw_mode(image)
    if open_again is not None and deep_image.is_transparent(image, raw):
        return deep_image.on_white(image, open_again, raw)
    image.load()
    image = deep_image.with_transparency_of_its_own_depth(image, raw, name)
    if image.mode.startswith("I"):
        white, inverted = (layout.white, layout.photometric == tiff_layout.WHITE_IS_ZERO) if layout else (65535, False)
        return deep_image.grey(image, name, white, inverted=inverted).convert("RGB")
    if image.mode != "La" and not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    # A cut-out is looked at on white. convert("RGB") would show what happens to lie under the transparency.
    flat = Image.new("RGB", image.size)
    for top, band in deep_image.bands(image):
        layer = (band.convert("LA") if band.mode == "La" else band).convert("RGBA")
        white_layer = Image.new("RGBA", layer.size, "white")
        flat.paste(Image.alpha_composite(white_layer, layer).convert("RGB"), (0, top))
    return flat


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow's EXIF reader fails in many ways on a damaged block; the image itself is whole
        return 1


def _from_array(array: Array, name: str) -> Image.Image:
    gray = array.ndim == 2
    if array.dtype != np.uint8 or not (gray or (array.ndim == 3 and array.shape[2] in (3, 4))):
        hint = "(array * 255).round().astype(np.uint8), when white is 1.0" if array.dtype.kind == "f" else ARRAYS
        raise ImageError(f"{name} is not an image: {ARRAYS}", hint=hint)
    if 0 in array.shape:
        raise ImageError(f"{name} has no pixels", hint="give another image")
    return Image.fromarray(array)


def _name(source: object) -> str:
    if isinstance(source, bytes):
        return f"an image of {len(source)} bytes"
    if isinstance(source, np.ndarray):
        return f"an array {source.dtype} {list(source.shape)}"
    if isinstance(source, Image.Image):
        return f"a Pillow image ({source.mode})"
    return repr(os.fspath(source)) if isinstance(source, str | os.PathLike) else f"a {type(source).__name__}"


@contextmanager
def _border(name: str, source: str | bytes | os.PathLike[str] | None = None) -> Iterator[None]:
    """Pillow's errors become one ImageError; its warnings, about odd metadata and large images, are not for users."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"no image at {name}", hint="check the path") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large: {error}", hint="make the image smaller") from error
    except Exception as error:  # a damaged file makes Pillow raise nearly everything
        raise _unreadable(name, source, error) from error


def _unreadable(name: str, source: str | bytes | os.PathLike[str] | None, error: Exception) -> ImageError:
    """What a file is that Pillow does not open or decode: by its first bytes, or a TIFF by its tags."""
    head, unidentified = b"?", isinstance(error, UnidentifiedImageError)
    with warnings.catch_warnings(), suppress(Exception):  # the file is gone by now, or a TIFF's directory is damaged
        warnings.simplefilter("ignore")
        with io.BytesIO(source) if isinstance(source, bytes) else open(source or "", "rb") as file:
            head = file.read(image_kinds.HEAD)
            if unidentified and tiff_layout.is_tiff(head):
                return tiff_layout.refusal(file, name)
    if not head:
        return ImageError(f"{name} is empty", hint="save the image again, or give another")
    kind = image_kinds.recognise(head)
    if kind is not None:
        return ImageError(f"{name} is {kind[0]}, which is not read", hint=kind[1])
    if unidentified:
        return ImageError(f"{name} is not an image, or is damaged", hint="convert it to PNG or JPEG")
    return ImageError(f"{name} cannot be read: {error}", hint="save the image again, or give another")
