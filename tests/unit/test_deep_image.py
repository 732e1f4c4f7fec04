"""Images of every depth: each file is written by hand, and its brightness reckoned from the samples, not by Pillow."""

from __future__ import annotations

import io
import itertools
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterable

import numpy as np
import pytest
from PIL import Image
from tiff_files import (
    ASSOCIATED,
    BLACK_IS_ZERO,
    DEFLATE,
    FLOAT,
    LZW,
    NONE,
    PACKBITS,
    PALETTE,
    RGB,
    SIGNED,
    UNASSOCIATED,
    UNSPECIFIED,
    WHITE_IS_ZERO,
    Tiff,
    brightness,
)

from edge.errors import ImageError
from edge.inputs import deep_image
from edge.inputs.image import open_image

GEOMETRY = {"one strip": {}, "strips": {"rows_per_strip": 2}, "tiles": {"tile": (16, 16)}}
RNG = np.random.default_rng(0)


def samples(bits: int, channels: int, height: int = 3, width: int = 7) -> np.ndarray:
    """[height, width, channels]: random, with the darkest and the brightest."""
    values = RNG.integers(0, 2**bits, (height, width, channels))
    values[0, 0], values[0, 1] = 0, 2**bits - 1
    return values


def multiplied(values: np.ndarray, bits: int) -> np.ndarray:
    """Colours times alpha, as associated alpha has them."""
    alpha = values[:, :, -1:]
    return np.concatenate([values[:, :, :-1] * alpha // (2**bits - 1), alpha], axis=2)


def assert_shows(data: bytes, expected: np.ndarray, within: int = 1) -> None:
    got = np.asarray(open_image(data)).astype(int)
    assert got.shape == expected.shape
    assert np.abs(got - np.rint(expected)).max() <= within


def assert_shows_or_refuses(tiff: Tiff, *, must: bool) -> None:
    data = tiff.bytes()
    refused = None
    try:
        assert_shows(data, brightness(tiff))
    except ImageError as error:
        refused = error
    if refused is not None:
        assert not must, refused
        assert "is a TIFF (" in refused.message and "which is not read: " in refused.message, refused
        assert refused.hint and ("magick" in refused.hint or "8 or 16 bits" in refused.hint)


def must_be_read(bits: int, photometric: int, order: str, extra: tuple[int, ...]) -> bool:
    """The usual layouts: channels together, bits in the usual order."""
    if photometric == RGB:
        return bits in (8, 16)
    if extra:
        return bits == 8 and photometric == BLACK_IS_ZERO and extra != (UNSPECIFIED,)
    known = {BLACK_IS_ZERO: (1, 2, 4, 8, 16), WHITE_IS_ZERO: (1, 2, 4, 8), PALETTE: (1, 2, 4, 8)}[photometric]
    return bits in known or (order == "<" and (bits, photometric) in ((12, BLACK_IS_ZERO), (16, WHITE_IS_ZERO)))


@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 14, 16, 32])
def test_a_tiff_of_any_layout_is_right_or_refused_by_name(bits, photometric):
    if photometric == PALETTE and bits > 16:
        return
    colours = 3 if photometric == RGB else 1
    extras = [(), (UNSPECIFIED,), (ASSOCIATED,), (UNASSOCIATED,)]
    choices = itertools.product(extras, (1, 2), "<>", (NONE, DEFLATE, LZW, PACKBITS), (1, 2), (1, 2), GEOMETRY)
    for extra, planar, order, compression, predictor, fill_order, geometry in choices:
        if predictor == 2 and compression not in (DEFLATE, LZW):
            continue
        if geometry != "one strip" and (fill_order == 2 or compression in (LZW, PACKBITS)):
            continue
        values = samples(bits, colours + len(extra))
        colormap = RNG.integers(0, 65536, (3, 2 ** min(bits, 12))) if photometric == PALETTE else None
        if colormap is not None:
            values[:, :, 0] %= colormap.shape[1]
        elif extra == (ASSOCIATED,):
            values = multiplied(values, bits)
        tiff = Tiff(
            values,
            bits,
            photometric,
            order,
            planar,
            compression,
            predictor,
            fill_order,
            extra=extra,
            colormap=colormap,
            **GEOMETRY[geometry],
        )
        usual = planar == 1 and fill_order == 1 and (predictor == 1 or bits in (8, 16))
        assert_shows_or_refuses(tiff, must=usual and must_be_read(bits, photometric, order, extra))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("compression", [NONE, DEFLATE])
def test_all_of_a_sixteen_bit_range(bits, order, compression):
    """Every value of 16 bits at once; of two channels with alpha, a grid of both."""
    values = np.arange(2**bits).reshape(-1, 2 ** (bits // 2), 1)
    assert_shows_or_refuses(Tiff(values, bits, order=order, compression=compression), must=True)
    white = Tiff(values, bits, WHITE_IS_ZERO, order, compression=compression)
    assert_shows_or_refuses(white, must=order == "<" or bits == 8)
    steps = np.linspace(0, 2**bits - 1, 97).astype(int)
    grey, alpha = np.meshgrid(steps, steps)
    grid = np.stack([grey, grey, grey, alpha], axis=2)
    for extra, values in ((UNASSOCIATED, grid), (ASSOCIATED, multiplied(grid, bits))):
        tiff = Tiff(values, bits, RGB, order, compression=compression, extra=(extra,))
        assert_shows_or_refuses(tiff, must=True)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "layout",
    [
        {"bits": 12},
        {"bits": 16},
        {"bits": 16, "order": ">"},
        {"bits": 16, "photometric": WHITE_IS_ZERO},
        {"bits": 16, "photometric": RGB},
        {"bits": 16, "photometric": RGB, "extra": (UNASSOCIATED,)},
    ],
    ids=str,
)
@pytest.mark.parametrize("compression", [NONE, LZW])
def test_a_deep_tiff_is_turned_upright(orientation, layout, compression):
    channels = (3 if layout.get("photometric") == RGB else 1) + len(layout.get("extra", ()))
    tiff = Tiff(samples(layout["bits"], channels), compression=compression, tags={274: (3, (orientation,))}, **layout)
    upright = brightness(tiff)
    if orientation >= 5:
        upright = upright.transpose(1, 0, 2)
    if orientation in (2, 3, 7, 8) and orientation < 5:
        upright = upright[:, ::-1]
    if orientation in (3, 4):
        upright = upright[::-1]
    if orientation in (6, 7):
        upright = upright[:, ::-1]
    if orientation in (7, 8):
        upright = upright[::-1]
    assert_shows(tiff.bytes(), upright)


def test_the_first_page_counts_with_its_own_tags():
    first = Tiff(samples(12, 1), 12)
    second = Tiff(samples(16, 1), 16, WHITE_IS_ZERO)
    assert_shows(first.bytes(second), brightness(first))
    assert_shows(second.bytes(first), brightness(second))


def test_big_tiff():
    tiff = Tiff(samples(16, 1), 16, WHITE_IS_ZERO, big=True)
    assert_shows(tiff.bytes(), brightness(tiff))
    with pytest.raises(ImageError, match="is a big-endian BigTIFF, which is not read"):
        open_image(Tiff(samples(12, 1), 12, WHITE_IS_ZERO, ">", big=True).bytes())


@pytest.mark.parametrize(
    ("tiff", "message"),
    [
        (Tiff(samples(12, 1), 12, order=">"), r"\(1 x 12 bits, big-endian, grey, uncompressed\), which is not read: "),
        (Tiff(samples(12, 1), 12, WHITE_IS_ZERO), r"12 bits, little-endian, grey, 0 is white"),
        (Tiff(samples(10, 1), 10, compression=LZW), r"10 bits, little-endian, grey, LZW"),
        (Tiff(samples(16, 1), 16, None), r"nothing says whether 0 is black or white"),
        (Tiff(samples(16, 2), 16, extra=(UNASSOCIATED,)), r"2 x 16 bits, little-endian, grey, with alpha"),
        (Tiff(samples(5, 3), (5, 6, 5), RGB), r"3 x 5/6 bits[\s\S]*its channels have different depths"),
        (Tiff(samples(8, 1) - 128, 8, sample_format=SIGNED), r"signed numbers do not say what white is"),
        (Tiff(samples(16, 1) - 32768, 16, sample_format=SIGNED), r"signed numbers do not say what white is"),
        (Tiff(samples(15, 1), 16, sample_format=SIGNED), r"signed numbers do not say what white is"),
        (Tiff(samples(31, 1), 32, sample_format=SIGNED), r"signed numbers do not say what white is"),
        (Tiff(samples(16, 1), 32), r"32-bit numbers do not say what white is"),
        (Tiff(samples(1, 1) * 1.0, 32, sample_format=FLOAT), r"floating-point numbers do not say what white is"),
        (Tiff(samples(16, 1), 16, sample_format=4), r"numbers of an undeclared kind do not say what white is"),
        (Tiff(samples(8, 3), 8, RGB, tags={50706: (4, (1,))}), r"a camera's raw file"),
        (Tiff(samples(8, 3), 8, RGB, tags={254: (4, (1,)), 330: (4, (8,))}), r"a camera's raw file"),
        (Tiff(samples(16, 1), 16, 32803), r"colours 32803[\s\S]*a camera's raw file"),
        (Tiff(samples(8, 3), 8, 6), r"its colours have a lower resolution"),
        (Tiff(samples(8, 1), 8, tags={259: (3, (34887,))}), r"grey, LERC\), which is not read"),
    ],
)
def test_what_a_tiff_holds_is_named(tiff, message, tmp_path):
    path = tmp_path / "scan.tif"
    path.write_bytes(tiff.bytes())
    for source in (path, path.read_bytes()):
        with pytest.raises(ImageError, match=message) as caught:
            open_image(source)
        assert "damaged" not in caught.value.message
        assert caught.value.hint


def test_a_pillow_image_of_a_tiff_is_read_by_its_tags():
    for tiff in (Tiff(samples(12, 1), 12), Tiff(samples(16, 1), 16, WHITE_IS_ZERO, compression=LZW)):
        with Image.open(io.BytesIO(tiff.bytes())) as image:
            for _ in range(2):  # before and after it is decoded
                assert np.abs(np.asarray(open_image(image)) - brightness(tiff)).max() <= 1
    with pytest.raises(ImageError, match="signed"):
        open_image(Image.open(io.BytesIO(Tiff(samples(15, 1), 16, sample_format=SIGNED).bytes())))


# PNG


GREY, COLOUR, INDEXED, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6


def png(values: np.ndarray, bits: int, kind: int, *, more: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """[H, W, channels] → a file; `more` are chunks between header and data."""
    height, width, _ = values.shape
    rows = []
    for row in values:
        text = "".join(f"{value:0{bits}b}" for value in row.reshape(-1).tolist())
        text += "0" * (-len(text) % 8)
        rows.append(b"\0" + bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8)))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)), *more]
    chunks += [(b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    return png_of(chunks)


def png_of(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data


def laid_on_white(colours: np.ndarray, alpha: np.ndarray, white: int) -> np.ndarray:
    """[H, W, 1 or 3] and [H, W, 1], in 0..white → [H, W, 3] in 0..255."""
    colours, alpha = colours / white, alpha / white
    return np.broadcast_to((colours * alpha + 1 - alpha) * 255, (*colours.shape[:2], 3))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_png_grey(bits):
    white = 2**bits - 1
    values = samples(bits, 1)
    assert_shows(png(values, bits, GREY), laid_on_white(values, np.full_like(values, white), white))
    for transparent in {0, 1, white // 2, white}:
        values[1, 2] = transparent
        alpha = np.where(values == transparent, 0, white)
        data = png(values, bits, GREY, more=((b"tRNS", struct.pack(">H", transparent)),))
        assert_shows(data, laid_on_white(values, alpha, white))


@pytest.mark.parametrize("bits", [8, 16])
def test_png_colour_with_a_transparent_one(bits):
    white = 2**bits - 1
    values = samples(bits, 3)
    values[1, :4] = key = values[2, 2]
    values[1, 1, 2] ^= 1  # the same high bytes: another colour
    values[1, 2, 0] ^= 1
    values[1, 3] = 0
    alpha = np.where((values == key).all(axis=2, keepdims=True), 0, white)
    data = png(values, bits, COLOUR, more=((b"tRNS", struct.pack(">3H", *key.tolist())),))
    assert_shows(data, laid_on_white(values, alpha, white))
    if bits == 16:
        for decoded in (False, True):
            image = Image.open(io.BytesIO(data))
            if decoded:
                image.load()
            with pytest.raises(ImageError, match="a transparent colour of 16 bits"):
                open_image(image)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("kind", "channels"), [(GREY_ALPHA, 2), (COLOUR_ALPHA, 4), (COLOUR, 3)])
def test_png_with_alpha(bits, kind, channels):
    white = 2**bits - 1
    steps = np.linspace(0, white, 61).astype(int)
    grey, alpha = np.meshgrid(steps, steps)
    values = np.stack([grey] * (channels - 1) + [alpha], axis=2)
    covered = values[:, :, -1:] if kind != COLOUR else np.full_like(values[:, :, :1], white)
    colours = values if kind == COLOUR else values[:, :, :-1]
    for more in ((), ((b"gAMA", struct.pack(">I", 100_000)),)):  # the numbers count, not the light that they mean
        assert_shows(png(values, bits, kind, more=more), laid_on_white(colours, covered, white))


@pytest.mark.parametrize("orientation", [6, 8])
def test_a_deep_png_is_turned_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    values = samples(16, 2)
    data = png(values, 16, GREY_ALPHA, more=((b"eXIf", exif.tobytes()[6:]),))
    expected = np.rot90(laid_on_white(values[:, :, :1], values[:, :, 1:], 65535), 1 if orientation == 8 else -1)
    assert_shows(data, expected)


# Others


@pytest.mark.parametrize("maxval", [1, 15, 100, 255, 256, 1023, 4095, 16383, 32768, 65535])
@pytest.mark.parametrize(("kind", "channels"), [(5, 1), (6, 3), (2, 1), (3, 3)])
def test_pgm_and_ppm_are_scaled_by_their_largest_value(maxval, kind, channels):
    values = RNG.integers(0, maxval + 1, (3, 7, channels))
    values[0, 0], values[0, 1] = 0, maxval
    body = values.astype(">u2" if maxval > 255 else "u1").tobytes()
    if kind < 4:
        body = " ".join(map(str, values.reshape(-1).tolist())).encode()
    data = f"P{kind} 7 3 {maxval}\n".encode() + body
    assert_shows(data, np.broadcast_to(values / maxval * 255, (3, 7, 3)))


def test_jpeg_2000_of_sixteen_bits():
    values = samples(16, 1, 16, 16)[:, :, 0].astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG2000", irreversible=False)
    assert_shows(file.getvalue(), np.repeat(values[:, :, None] / 257, 3, axis=2))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_pillow_images_of_sixteen_bits(mode):
    values = samples(16, 1)[:, :, 0]
    kind = {"I;16B": ">u2", "I": "<i4"}.get(mode, "<u2")
    raw = {"I": "I;32"}.get(mode, mode)
    image = Image.frombytes(mode, (7, 3), values.astype(kind).tobytes(), "raw", raw)
    assert np.abs(np.asarray(open_image(image))[:, :, 1] - values / 257).max() <= 1


def test_grey_whose_colours_are_multiplied_by_alpha():
    layer = Image.fromarray(np.array([[[100, 50], [0, 255], [20, 20]]], np.uint8), "LA").convert("La")
    values = np.asarray(layer).astype(int)
    assert np.abs(np.asarray(open_image(layer))[:, :, 0] - (values[:, :, 0] + 255 - values[:, :, 1])).max() <= 1


# Sizes that lie


def test_declared_sizes_are_believed_only_when_the_file_can_hold_them(monkeypatch):
    monkeypatch.setattr(Image.core, "new", lambda *_: pytest.fail("allocated"))
    monkeypatch.setattr(Image.core, "fill", lambda *_: pytest.fail("allocated"))
    small = samples(16, 1)
    for tags in (
        {257: (4, (8_000_000,))},  # rows without strips
        {257: (4, (900_000,)), 278: (4, (900_000,))},  # one strip, of which next to nothing is there
        {256: (4, (900_000,))},
        {256: (4, (8_000,)), 257: (4, (8_000,)), 258: (3, (32,)), 278: (4, (8_000,))},
    ):
        with pytest.raises(ImageError, match=r"pixels take|a side|32-bit"):
            open_image(Tiff(small, 16, tags=tags).bytes())
    with pytest.raises(ImageError, match="take 900000 strips or tiles, it has 3"):
        open_image(Tiff(small, 16, compression=DEFLATE, rows_per_strip=1, tags={257: (4, (900_000,))}).bytes())
    huge = {322: (4, (32_768,)), 323: (4, (32_768,))}
    with pytest.raises(ImageError, match="tiles of 32768x32768 for 7x3 pixels"):
        open_image(Tiff(small, 16, compression=DEFLATE, tile=(16, 16), tags=huge).bytes())
    one_strip = {256: (4, (10_000,)), 257: (4, (8_000,)), 278: (4, (8_000,))}
    with pytest.raises(ImageError, match="strips or tiles of 640,000,000 bytes; at most 536,870,912"):
        open_image(Tiff(samples(16, 4), 16, RGB, extra=(UNASSOCIATED,), compression=DEFLATE, tags=one_strip).bytes())
    for tags in ({322: (4, (0,))}, {323: (4, (0,))}, {258: (3, (0,))}):
        with pytest.raises(ImageError, match=r"tags are damaged|is not an image|TIFF"):
            open_image(Tiff(small, 16, tile=(16, 16), tags=tags).bytes())


PEAK = """
import resource, sys
from edge.inputs.image import open_image
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
open_image(sys.argv[1])
before = peak()
open_image(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux only")
@pytest.mark.parametrize(("bits", "kind"), [(8, COLOUR_ALPHA), (16, GREY), (16, GREY_ALPHA), (16, COLOUR_ALPHA)])
def test_a_large_image_takes_at_most_twelve_bytes_a_pixel(bits, kind, tmp_path):
    channels, side = {GREY: 1, GREY_ALPHA: 2, COLOUR_ALPHA: 4}[kind], 3000
    exif = Image.Exif()
    exif[0x0112] = 6  # turning it takes a copy
    header = struct.pack(">IIBBBBB", side, side, bits, kind, 0, 0, 0)
    data = zlib.compress(bytes((1 + side * channels * bits // 8) * side), 1)
    chunks = ((b"IHDR", header), (b"eXIf", exif.tobytes()[6:]), (b"IDAT", data), (b"IEND", b""))
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    small.write_bytes(png(samples(bits, channels), bits, kind))
    large.write_bytes(png_of(chunks))
    done = subprocess.run([sys.executable, "-c", PEAK, small, large], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 12 * side * side


def test_floating_point_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    for data in (b"Pf 2 2 -1.0\n" + bytes(16), Tiff(samples(1, 1) * 1.0, 32, sample_format=FLOAT).bytes()):
        with pytest.raises(ImageError, match="what white is") as caught:
            open_image(data)
        assert "8 or 16 bits" in caught.value.hint


# Every mode and shape, in pieces


def flattened(image: Image.Image) -> np.ndarray:
    """As a whole, by Pillow's own steps."""
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(image.convert("RGB"))


def random_image(mode: str, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8), "RGBA")
    if mode in ("P", "PA"):
        return image.convert("RGB").quantize(16).convert(mode)
    return (image if mode in ("RGBA", "RGBa") else image.convert("RGB")).convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (7, 9), (64, 3)])
def test_pieces_are_the_whole(mode, size, monkeypatch):
    image = random_image(mode, *size)
    expected = flattened(image)
    for band in (1, 13, 1 << 18):
        monkeypatch.setattr(deep_image, "BAND", band)
        np.testing.assert_array_equal(np.asarray(open_image(image)), expected)


@pytest.mark.parametrize("kind", ["bytes", "one colour"])
def test_a_palette_with_transparency_in_pieces(kind, monkeypatch):
    image = random_image("P", 20, 20)
    transparency = bytes(range(0, 256, 16)) if kind == "bytes" else 3
    file = io.BytesIO()
    image.save(file, "PNG", transparency=transparency)
    with Image.open(file) as opened:
        expected = flattened(opened)
    monkeypatch.setattr(deep_image, "BAND", 30)
    np.testing.assert_array_equal(np.asarray(open_image(file.getvalue())), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 999)])
@pytest.mark.parametrize(("bits", "kind", "channels"), [(16, GREY, 1), (16, GREY_ALPHA, 2), (16, COLOUR_ALPHA, 4)])
def test_narrow_deep_images_in_pieces(size, bits, kind, channels, monkeypatch):
    values = RNG.integers(0, 2**bits, (size[1], size[0], channels))
    monkeypatch.setattr(deep_image, "BAND", 700)
    alpha = values[:, :, -1:] if channels > 1 else np.full_like(values, 65535)
    colours = values[:, :, :-1] if channels > 1 else values
    assert_shows(png(values, bits, kind), laid_on_white(colours, alpha, 65535))


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
def test_images_without_pixels(width, height):
    for data in (
        Tiff(samples(16, 1), 16, tags={256: (4, (width,)), 257: (4, (height,))}).bytes(),
        b"P5 %d %d 65535\n" % (width, height),
    ):
        with pytest.raises(ImageError, match=r"has no pixels|cannot be read|not an image"):
            open_image(data)


def test_a_million_rows_are_the_most():
    for size in ((1, 1_000_001), (1_000_001, 1)):
        with pytest.raises(ImageError, match="1,000,000 a side"):
            open_image(Image.new("L", size))
    assert open_image(Image.new("L", (1, 1_000_000), 7)).getpixel((0, 999_999)) == (7, 7, 7)
