"""TIFF: how samples are stored, by its tags, and which of those layouts Pillow reads as the specification means."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import IO, Any

from PIL import Image
from PIL.TiffImagePlugin import PREFIXES, ImageFileDirectory_v2, TiffImageFile

from edge.errors import ImageError
from edge.inputs.image_kinds import RAW

WHITE_IS_ZERO, RGB, PALETTE, YCBCR = 0, 2, 3, 6
SENSOR = (32803, 34892)  # one colour a pixel as the sensor has it; linear raw
COLOURS = {0: "grey, 0 is white", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELAB"}
COMPRESSIONS = {
    1: "uncompressed",
    2: "CCITT",
    3: "fax 3",
    4: "fax 4",
    5: "LZW",
    6: "old JPEG",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    34712: "JPEG 2000",
    34887: "LERC",
    34925: "LZMA",
    50000: "Zstandard",
}
NUMBERS = {2: "signed numbers", 3: "floating-point numbers", 5: "complex integers", 6: "complex numbers"}
ALPHA = {1, 2}  # ExtraSamples: associated (colours are multiplied by it), unassociated
UNCOMPRESSED, OLD_JPEG, WITH_PREDICTOR = 1, 6, (5, 8, 32946)
SCALE = "save it with 8 or 16 bits, unsigned, so that 0 is black and the largest number is white"
CONVERT = "convert it to 8 bits: magick IMAGE -depth 8 image.png"
MAX_TILE = 1 << 24  # pixels: a tile is decoded whole, however small the image is
MAX_BLOCK = 1 << 29  # bytes of a compressed strip or tile, which LibTIFF decodes beside the image


@dataclass(frozen=True)
class Layout:
    order: str  # II: little-endian, MM: big-endian
    width: int
    height: int
    bits: tuple[int, ...]  # of each sample
    samples: int
    compression: int
    photometric: int | None
    fill_order: int
    planar: bool  # each channel in strips of its own
    predictor: int
    extra: tuple[int, ...]  # what the samples beyond the colours mean
    formats: frozenset[int]  # 1: unsigned
    subsampling: tuple[int, ...]
    tile: tuple[int, int] | None  # width, height
    rows: int  # of a strip
    blocks: int  # strips or tiles that the file lists
    preview: bool  # a camera's raw file: its first image is a small one, to look at

    @property
    def white(self) -> int:
        return int(2 ** max(self.bits) - 1)

    @property
    def alpha(self) -> bool:
        return bool(ALPHA & set(self.extra))

    def __str__(self) -> str:
        depth = "/".join(str(bits) for bits in dict.fromkeys(self.bits))
        what = [f"{self.samples} x {depth} bits", {"II": "little-endian", "MM": "big-endian"}[self.order]]
        what += [COLOURS.get(self.photometric or 0, f"colours {self.photometric}")] * (self.photometric is not None)
        what += ["with alpha"] * self.alpha + ["planar"] * self.planar
        what += [COMPRESSIONS.get(self.compression, f"compression {self.compression}")]
        what += [f"predictor {self.predictor}"] * (self.predictor != 1)
        what += ["reversed bits"] * (self.fill_order == 2)
        return f"a TIFF ({', '.join(what)})"


def read(file: IO[bytes]) -> Layout:
    """The layout of the first image. Raises nearly anything on damage."""
    file.seek(0)
    head = file.read(8)
    if head[2:4] in (b"\x2b\0", b"\0\x2b"):  # BigTIFF
        head += file.read(8)
    directory = ImageFileDirectory_v2(head)
    file.seek(directory.next)
    directory.load(file)
    return of_tags(directory)


def is_tiff(head: bytes) -> bool:
    return head.startswith(tuple(PREFIXES))


def of_tags(tags: Mapping[int, Any]) -> Layout:
    """`tags` as Pillow gives them, in `tag_v2`. Raises OSError on values that make no layout."""
    samples = _one(tags, 277, 1)
    bits = _numbers(tags, 258, 1)
    bits = bits * samples if len(bits) == 1 and samples < 64 else bits[:samples]
    photometric = _one(tags, 262, -1)
    tiled = 324 in tags
    layout = Layout(
        order=str(getattr(tags, "prefix", b"II"), "latin-1"),
        width=_one(tags, 256, 0),
        height=_one(tags, 257, 0),
        bits=bits,
        samples=samples,
        compression=_one(tags, 259, 1),
        photometric=None if photometric == -1 else photometric,
        fill_order=_one(tags, 266, 1),
        planar=_one(tags, 284, 1) == 2,
        predictor=_one(tags, 317, 1),
        extra=_numbers(tags, 338) if 338 in tags else (),
        formats=frozenset(_numbers(tags, 339, 1)),
        subsampling=_numbers(tags, 530, 2, 2),
        tile=(_one(tags, 322, 0), _one(tags, 323, 0)) if tiled else None,
        rows=_one(tags, 278, 2**32 - 1),
        blocks=len(_numbers(tags, 324 if tiled else 273)) if (324 if tiled else 273) in tags else 0,
        preview=50706 in tags or bool(_one(tags, 254, 0) & 1 and 330 in tags),
    )
    if not bits or min(bits) < 1 or max(bits) > 64 or min(*(layout.tile or (1, 1)), layout.rows) < 1:
        raise OSError(f"its tags are damaged: {bits[:8]} bits, tiles {layout.tile}, {layout.rows} rows a strip")
    return layout


def _one(tags: Mapping[int, Any], tag: int, default: int) -> int:
    return (_numbers(tags, tag, default) or (default,))[0]


def _numbers(tags: Mapping[int, Any], tag: int, *default: int) -> tuple[int, ...]:
    values = tags.get(tag, default)
    values = values if isinstance(values, tuple) else (values,)
    if not all(isinstance(value, int) for value in values):
        raise OSError(f"tag {tag} is damaged: {str(values)[:40]}")
    return values


def why_refused(layout: Layout) -> tuple[str, str] | None:
    """What Pillow would misread, or cannot read, though nothing is damaged, and a hint; None for the rest."""
    depth = max(layout.bits)
    if layout.preview or layout.photometric in SENSOR:
        return "it is a camera's raw file, of which only a small preview can be read", RAW
    if layout.formats != {1}:
        numbers = next((NUMBERS[kind] for kind in layout.formats if kind in NUMBERS), "numbers of an undeclared kind")
        return f"{numbers} do not say what white is", SCALE
    if depth > 16:
        return f"{depth}-bit numbers do not say what white is", SCALE
    if len(set(layout.bits)) > 1:
        return "its channels have different depths", CONVERT
    if layout.photometric is None and depth > 8:
        return "nothing says whether 0 is black or white (PhotometricInterpretation)", CONVERT
    if layout.predictor != 1 and layout.compression in WITH_PREDICTOR and depth not in (8, 16):
        return f"differences of {depth}-bit samples are not decoded", CONVERT
    if layout.photometric == YCBCR and layout.compression == UNCOMPRESSED and set(layout.subsampling) != {1}:
        return "its colours have a lower resolution than its brightness, and are not compressed", CONVERT
    if layout.fill_order == 2 and layout.compression == UNCOMPRESSED and _not_reversed(layout, depth):
        return "the bits of its bytes are in reverse order", CONVERT
    if layout.planar and _scrambled(layout, depth):
        return "its channels lie one after another", CONVERT
    return None


def _scrambled(layout: Layout, depth: int) -> bool:
    """Pillow takes uncompressed planes for 8 bits where 0 is black, and a compressed plane of alpha for green."""
    if layout.compression == UNCOMPRESSED:
        plain = depth == 8 and layout.photometric not in (WHITE_IS_ZERO, None) and layout.fill_order == 1
        return not plain or 1 in layout.extra or (layout.alpha and layout.photometric != RGB)
    return layout.alpha and (depth != 8 or layout.photometric != RGB)


def _not_reversed(layout: Layout, depth: int) -> bool:
    """Pillow has a reversed unpacker for the other kinds; LibTIFF, which reads compressed files, for all."""
    return layout.photometric == PALETTE or (layout.photometric in (WHITE_IS_ZERO, None) and depth == 8)


def check(image: Image.Image, name: str) -> Layout | None:
    """The layout, before anything is decoded; None for what is no TIFF.

    Raises ImageError on what Pillow would misread, OSError on a file that cannot hold what it declares.
    """
    tags = getattr(image, "tag_v2", None)
    if not isinstance(image, TiffImageFile) or tags is None:
        return None
    layout, file = of_tags(tags), image.fp if image.tile else None
    if file is not None:
        file.seek(8)
        layout = replace(layout, preview=layout.preview or file.read(2) == b"CR")  # Canon's CR2
    refused = why_refused(layout)
    if refused is not None:
        raise ImageError(f"{name} is {layout}, which is not read: {refused[0]}", hint=refused[1])
    if file is not None:
        check_size(layout, file)
    return layout


def refusal(file: IO[bytes], name: str) -> ImageError:
    """Why Pillow does not open a TIFF. Raises nearly anything on a damaged one."""
    file.seek(0)
    if file.read(4) == b"MM\0\x2b":
        return ImageError(f"{name} is a big-endian BigTIFF, which is not read", hint=CONVERT)
    layout = read(file)
    check_size(layout, file)
    reason, hint = why_refused(layout) or ("Pillow has no such layout", CONVERT)
    return ImageError(f"{name} is {layout}, which is not read: {reason}", hint=hint)


def check_size(layout: Layout, file: IO[bytes]) -> None:
    """Raises OSError, before anything is allocated, on a file that cannot hold the pixels that it declares."""
    planes = layout.samples if layout.planar else 1
    across, down = layout.tile or (layout.width, min(layout.rows, layout.height))
    if layout.tile and across * down > max(MAX_TILE, layout.width * layout.height):
        raise OSError(f"tiles of {across}x{down} for {layout.width}x{layout.height} pixels")
    if layout.compression != UNCOMPRESSED and (block := across * down * sum(layout.bits) // planes // 8) > MAX_BLOCK:
        raise OSError(f"strips or tiles of {block:,} bytes; at most {MAX_BLOCK:,} are decoded")
    blocks = ceil(layout.width / across) * ceil(layout.height / down) * planes
    if layout.blocks < blocks and layout.compression != OLD_JPEG:  # which may lie outside of strips
        raise OSError(f"{layout.width}x{layout.height} pixels take {blocks} strips or tiles, it has {layout.blocks}")
    if layout.compression == UNCOMPRESSED:
        row = sum(ceil(layout.width * bits / 8) for bits in layout.bits) if layout.planar else 0
        needed = layout.height * (row or ceil(layout.width * sum(layout.bits) / 8))
        size = file.seek(0, io.SEEK_END)
        if size < needed:
            raise OSError(f"{layout.width}x{layout.height} pixels take {needed} bytes, it has {size}")
