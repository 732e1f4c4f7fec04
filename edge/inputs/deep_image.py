"""Images with more than 8 bits a sample, as 8-bit RGB: scaled, and on white where they are transparent."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from edge.errors import ImageError
from edge.inputs.tiff_layout import SCALE

BAND = 1 << 18  # pixels that are converted at a time: a large image takes no second large array
OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
STRETCHED = {"L;2": 85, "L;4": 17}  # to 0..255

Opener = Callable[[], ImageFile.ImageFile]


def raw_mode(image: Image.Image) -> str:
    """How samples lie in the file that `image` is to be decoded from, in Pillow's words; "" once it is decoded."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The first row and the rows of one piece after another."""
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def grey(image: Image.Image, name: str, white: int = 65535, *, inverted: bool = False) -> Image.Image:
    """Mode L from numbers 0..`white`; Pillow's own conversion clips them. A transparent number (PNG) becomes white.

    Raises ImageError on wider numbers, which do not say what white is.
    """
    table = ((np.minimum(np.arange(65536), white) * 255 + white // 2) // white).astype(np.uint8)
    if inverted:
        table = 255 - table
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        table[transparent] = 255
    result = Image.new("L", image.size)
    for top, band in bands(image):
        values = np.asarray(band)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"{name} has 32-bit pixels, which do not say what white is", hint=SCALE)
        result.paste(Image.fromarray(table[values]), (0, top))
    return result


def with_transparency_of_its_own_depth(image: Image.Image, raw: str, name: str) -> Image.Image:
    """Pillow stretches the samples of a PNG of 2 and 4 bits, and cuts those of 16, but leaves the transparent one.

    Raises ImageError on 16 bits: other colours have the same high byte. A file is read in 16 bits (`on_white`).
    """
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple) and (raw == "RGB;16B" or max(transparent) > 255):
        raise ImageError(
            f"{name} has a transparent colour of 16 bits, of which Pillow compares 8", hint="give the file instead"
        )
    if raw in STRETCHED and isinstance(transparent, int):
        image = image.copy()  # what a user gave is left as it is
        image.info["transparency"] = transparent * STRETCHED[raw]
    return image


def is_transparent(image: Image.Image, raw: str) -> TypeGuard[ImageFile.ImageFile]:
    """Whether 16-bit channels are transparent, which Pillow would cut to 8 bits before it looks at them."""
    colour = image.info.get("transparency")
    if not isinstance(image, ImageFile.ImageFile):
        return False
    return raw == "LA;16B" or raw[:-1] in ("RGBA;16", "RGBa;16") or (raw == "RGB;16B" and isinstance(colour, tuple))


def on_white(image: ImageFile.ImageFile, open_again: Opener, raw: str) -> Image.Image:
    """RGB from 16-bit channels of which one is alpha, or of which one colour is transparent. `image` is used up.

    Pillow decodes 16-bit channels to their high bytes. Decoded in the other byte order, they are the low ones.
    """
    low = None
    if raw == "LA;16B":  # two bytes of grey, two of alpha: in one go
        _decode(image, "RGBA")
    else:
        channels, order = raw.replace("a", "A")[:-1], raw[-1]
        _decode(image, channels + order)
        with open_again() as low:
            _decode(low, channels + OTHER_BYTE[order])
    colour = image.info.get("transparency")
    for top, band in bands(image):
        high = np.asarray(band)
        if low is None:
            high, less = high[:, :, [0, 0, 0, 2]], high[:, :, [1, 1, 1, 3]]
        else:
            less = np.asarray(low.crop((0, top, low.width, top + band.height)))
        values = high.astype(np.uint16) * np.uint16(256) + less
        flat = _flat(values, associated="a" in raw, colour=colour)
        image.paste(Image.fromarray(flat), (0, top))
    low = None  # its pixels are freed before the others are copied
    return image.convert("RGB")


def _flat(values: NDArray[np.uint16], *, associated: bool, colour: tuple[int, ...] | None) -> NDArray[np.uint8]:
    """[H, W, 3], on white: of [H, W, 3] with one transparent colour, or of [H, W, 4] with alpha."""
    colours = values[:, :, :3] / 65535
    if values.shape[2] == 4:
        alpha = values[:, :, 3:] / 65535
        colours = (colours if associated else colours * alpha) + 1 - alpha
    elif colour is not None:
        colours[(values == np.array(colour)).all(axis=2)] = 1
    return np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)


def _decode(image: ImageFile.ImageFile, raw: str) -> None:
    for index, tile in enumerate(image.tile):
        make: Callable[..., Any] = getattr(tile, "_make", tuple)  # before Pillow 11 a plain tuple
        arguments = (raw, *tile[3][1:]) if isinstance(tile[3], tuple) else raw
        image.tile[index] = make((*tile[:3], arguments))
    image.load()
