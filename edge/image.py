"""A picture, in whatever state it arrives, becomes the pixels that the model was trained on."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edge.errors import ImageError
from edge.spec import ImageSpec
from edge.types import Array

Source = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

MAX_PIXELS = 178_956_970  # where Pillow itself speaks of a decompression bomb
MAX_SIDE = 8192  # a longer picture is shrunk before it is padded: the square would take gigabytes
MAX_RATIO = 16  # a longer picture loses its ends before it is cropped: nothing of them would be left
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
RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# Pillow knows more, but some are drawings that it hands to another program (EPS to Ghostscript).
FORMATS = {"AVIF", "BMP", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP"}
ARRAYS = "a picture as an array is uint8, [H, W], [H, W, 3] RGB or [H, W, 4] RGBA"


def open_image(source: Source) -> Image.Image:
    """The picture in RGB, upright, on white where it is transparent; the first frame of an animated file.

    A path, the bytes of a file, a Pillow image (left as it is), or a uint8 array [H, W], [H, W, 3] or [H, W, 4].
    Raises ImageError on anything else and on what cannot be read.
    """
    name = _name(source)
    if isinstance(source, np.ndarray):
        return _rgb(_from_array(source, name), name)
    if isinstance(source, Image.Image):
        return _rgb(source, name)
    if not isinstance(source, str | bytes | os.PathLike):
        raise ImageError(f"{name} is not a picture", hint="give a path, bytes, a Pillow image or a uint8 array")
    with _border(name), Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
        if picture.format not in FORMATS:
            raise ImageError(f"{name} is {picture.format}, which is not read", hint="convert it to PNG or JPEG")
        return _rgb(picture, name)


def pixels(source: Source, spec: ImageSpec) -> NDArray[np.float32]:
    """float32 [1, 3, size, size]: fitted to the square, resampled as Pillow does, scaled to 0..1, normalised."""
    picture = open_image(source)
    square = _pad(picture, spec) if spec.fit == "pad" else _crop(picture, spec)
    mean, std = np.array(spec.mean)[:, None], np.array(spec.std)[:, None]
    table = ((np.arange(256) / 255 - mean) / std).astype(np.float32)  # [3, 256]: a channel value has one result
    channels = np.asarray(square).transpose(2, 0, 1)
    return np.stack([row[channel] for row, channel in zip(table, channels, strict=True)])[None]


def digest(pixels: NDArray[np.float32]) -> str:
    """Equal for equal pixels: what a picture's embeddings are remembered by."""
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _pad(picture: Image.Image, spec: ImageSpec) -> Image.Image:
    side = max(picture.size)
    if side > MAX_SIDE:
        width, height = (max(1, round(edge * MAX_SIDE / side)) for edge in picture.size)
        picture, side = picture.resize((width, height), RESAMPLE[spec.resample]), MAX_SIDE
    square = Image.new("RGB", (side, side), spec.background)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.resize((spec.size, spec.size), RESAMPLE[spec.resample])


def _crop(picture: Image.Image, spec: ImageSpec) -> Image.Image:
    # As many pixels from one end as from the other: the middle stays where it was.
    cut_x = max(0, (picture.width - MAX_RATIO * picture.height) // 2)
    cut_y = max(0, (picture.height - MAX_RATIO * picture.width) // 2)
    if cut_x or cut_y:
        picture = picture.crop((cut_x, cut_y, picture.width - cut_x, picture.height - cut_y))
    short = min(picture.size)
    width, height = (int(spec.size * edge / short) for edge in picture.size)
    left, top = (width - spec.size) // 2, (height - spec.size) // 2
    resized = picture.resize((width, height), RESAMPLE[spec.resample])
    return resized.crop((left, top, left + spec.size, top + spec.size))


def _rgb(picture: Image.Image, name: str) -> Image.Image:
    if 0 in picture.size:
        raise ImageError(f"{name} has no pixels: {picture.width}x{picture.height}", hint="give another picture")
    if picture.width * picture.height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {picture.width}x{picture.height} pixels; at most {MAX_PIXELS:,} are read",
            hint="make the picture smaller",
        )
    with _border(name):
        picture.load()
        upright = TURNS.get(_orientation(picture))
        if upright is not None:
            picture = picture.transpose(upright)
        if picture.mode == "F" or picture.mode.startswith("I"):
            picture = _eight_bits(picture, name)
        if picture.has_transparency_data:
            # A cut-out is looked at on white. convert("RGB") would show what happens to lie under the transparency.
            layer = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return picture.convert("RGB")


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow's EXIF reader fails in many ways on a damaged block; the picture itself is whole
        return 1


def _eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """16 bits a pixel scaled to 8 (Pillow's own conversion clips). Wider numbers do not say what white is."""
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        kind = "floating-point" if picture.mode == "F" else "32-bit"
        raise ImageError(f"{name} has {kind} pixels, which do not say what white is", hint="save it with 8 or 16 bits")
    return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))


def _from_array(array: Array, name: str) -> Image.Image:
    gray = array.ndim == 2
    if array.dtype != np.uint8 or not (gray or (array.ndim == 3 and array.shape[2] in (3, 4))):
        hint = "(array * 255).round().astype(np.uint8), when white is 1.0" if array.dtype.kind == "f" else ARRAYS
        raise ImageError(f"{name} is not a picture: {ARRAYS}", hint=hint)
    if 0 in array.shape:
        raise ImageError(f"{name} has no pixels", hint="give another picture")
    return Image.fromarray(array)


def _name(source: object) -> str:
    if isinstance(source, bytes):
        return f"a picture of {len(source)} bytes"
    if isinstance(source, np.ndarray):
        return f"an array {source.dtype} {list(source.shape)}"
    if isinstance(source, Image.Image):
        return f"a Pillow image ({source.mode})"
    return repr(os.fspath(source)) if isinstance(source, str | os.PathLike) else f"a {type(source).__name__}"


@contextmanager
def _border(name: str) -> Iterator[None]:
    """Pillow's errors become one ImageError; its warnings, about odd metadata and large pictures, are not for users."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"no picture at {name}", hint="check the path") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a picture, or is damaged", hint="convert it to PNG or JPEG") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large: {error}", hint="make the picture smaller") from error
    except Exception as error:  # a damaged file makes Pillow raise nearly everything
        raise ImageError(f"{name} cannot be read: {error}", hint="save the picture again, or give another") from error
