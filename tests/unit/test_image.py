from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from edge.errors import ImageError
from edge.inputs.image import MAX_PIXELS, digest, dimensions, open_image, pixels
from edge.spec import ImageSpec

STORED = Path(__file__).parents[1] / "data" / "preprocessing.npz"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SPEC = ImageSpec(32, "pad", (122, 116, 104), "bicubic", MEAN, STD)
CROP = replace(SPEC, fit="crop")
STRETCH = replace(SPEC, fit="stretch")
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(picture: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def bytes_of(pixels: np.ndarray, spec: ImageSpec = SPEC) -> np.ndarray:
    """[S, S, 3] uint8: what was there before scaling and normalising."""
    return np.rint((pixels[0].transpose(1, 2, 0) * spec.std + spec.mean) * 255).astype(np.uint8)


def corners() -> Image.Image:
    """3x2: red, green, blue over white, black, black."""
    array = np.zeros((2, 3, 3), np.uint8)
    array[0], array[1, 0] = (RED, GREEN, BLUE), WHITE
    return Image.fromarray(array)


def test_a_files_head_tells_its_size_before_anything_is_decoded() -> None:
    whole = encoded(Image.new("RGB", (300, 200)), "PNG")
    assert dimensions(whole) == dimensions(whole[:60]) == (300, 200)
    for broken in (b"", b"no picture", whole[:20]):
        with pytest.raises(ImageError):
            dimensions(broken)


@pytest.mark.parametrize("shape", ["wide", "tall"])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_pixels_are_the_stored_reference(shape, fit):
    stored = np.load(STORED)
    ours = pixels(stored[shape], replace(SPEC, fit=fit))
    assert ours.dtype == np.float32
    assert ours.shape == (1, 3, 32, 32)
    np.testing.assert_allclose(ours, stored[f"{shape}.{fit}"], atol=1e-6)


def test_padding_puts_the_odd_pixel_at_the_end():
    array = np.zeros((3, 6, 3), np.uint8)
    square = bytes_of(pixels(array, replace(SPEC, size=6)))
    assert [tuple(row[0]) for row in square] == [SPEC.background, (0,) * 3, (0,) * 3, (0,) * 3, *[SPEC.background] * 2]


def test_bilinear_is_another_resampling():
    array = np.load(STORED)["wide"]
    assert np.abs(pixels(array, SPEC) - pixels(array, replace(SPEC, resample="bilinear"))).max() > 0.05


def test_every_kind_of_source_gives_the_same(tmp_path):
    picture = Image.fromarray(np.load(STORED)["wide"])
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(picture, "PNG"))
    sources = [str(path), path, path.read_bytes(), picture, np.asarray(picture), np.asarray(picture)[:, ::-1][:, ::-1]]
    assert len({digest(pixels(source, SPEC)) for source in sources}) == 1


def test_digest_tells_pixels_apart():
    array = np.zeros((1, 3, 4, 4), np.float32)
    other = array.copy()
    other[0, 0, 0, 0] = 1e-6
    assert digest(array) == digest(array.copy())
    assert len({digest(array), digest(other), digest(array.reshape(1, 3, 2, 8))}) == 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation, format):
    upright = corners()
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    exif = Image.Exif()
    exif[0x0112] = undo
    stored = ImageOps.exif_transpose(_with_exif(upright, exif))
    exif[0x0112] = orientation
    data = encoded(stored, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    np.testing.assert_array_equal(np.asarray(open_image(data)), np.asarray(upright))


def _with_exif(picture: Image.Image, exif: Image.Exif) -> Image.Image:
    return Image.open(io.BytesIO(encoded(picture, "PNG", exif=exif)))


@pytest.mark.parametrize(
    "block",
    [
        b"II*\0\xff\xff\xff\x7f" + b"\xff" * 30,  # its table lies nowhere
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0",  # the orientation is a word
        b"no exif at all",
    ],
)
def test_damaged_exif_does_not_spoil_the_picture(block):
    assert open_image(encoded(corners(), "JPEG", exif=b"Exif\0\0" + block)).size == (3, 2)


def test_transparency_is_white():
    layer = np.zeros((1, 3, 4), np.uint8)
    layer[0] = [(*RED, 255), (*RED, 0), (0, 0, 0, 51)]
    expected = [[RED, WHITE, (204, 204, 204)]]
    assert np.asarray(open_image(layer)).tolist() == np.array(expected).tolist()
    assert np.asarray(open_image(encoded(Image.fromarray(layer), "PNG"))).tolist() == np.array(expected).tolist()
    gray = Image.new("LA", (1, 1), (0, 51))
    assert open_image(gray).getpixel((0, 0)) == (204, 204, 204)


def test_palette_with_a_transparent_entry():
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, *GREEN])
    picture.putpixel((1, 0), 1)
    for data in (encoded(picture, "PNG", transparency=0), encoded(picture, "GIF", transparency=0)):
        opened = open_image(data)
        assert [opened.getpixel((x, 0)) for x in (0, 1)] == [WHITE, GREEN]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(format):
    values = np.array([[0, 128, 129, 32768, 65535]], np.uint16)
    opened = open_image(encoded(Image.fromarray(values), format))
    assert np.asarray(opened)[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert np.asarray(open_image(Image.fromarray(values.astype(np.int32))))[0, :, 2].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("value", [np.float32(0.5), np.int32(70000), np.int32(-1)])
def test_numbers_that_do_not_say_what_white_is(value):
    with pytest.raises(ImageError, match="what white is") as caught:
        open_image(Image.fromarray(np.full((2, 2), value)))
    assert "8 or 16 bits" in caught.value.hint


def test_cmyk_and_one_bit_and_gray():
    assert open_image(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF")).getpixel((0, 0)) == RED
    jpeg = open_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")).getpixel((8, 8))
    assert np.abs(np.array(jpeg) - RED).max() < 8
    assert open_image(Image.new("1", (2, 2), 1)).getpixel((0, 0)) == WHITE
    assert open_image(np.full((2, 2), 7, np.uint8)).getpixel((1, 1)) == (7, 7, 7)


def test_animated_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **_lossless(format))
        assert open_image(data).getpixel((0, 0)) == RED, format


def _lossless(format: str) -> dict[str, bool]:
    return {"lossless": True} if format == "WEBP" else {}


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises these sides, in 1 bit, and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20_000, 20_000), (13_378, 13_378)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(size, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert size[0] * size[1] > MAX_PIXELS
    with pytest.raises(ImageError, match="smaller"):
        open_image(png_header(*size))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageError, match=f"{size[0]}x{size[1]} pixels; at most 178,956,970"):
        open_image(png_header(*size))


def test_no_warning_reaches_the_user(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(encoded(corners(), "PNG")).size == (3, 2)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_truncated_file_is_one_clear_error(tmp_path, format):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    path = tmp_path / "cut"
    path.write_bytes(encoded(noise, format)[:-1500])
    with pytest.raises(ImageError, match="cut' ") as caught:
        open_image(path)
    assert caught.value.hint
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "an image of 0 bytes is empty"),
        (b"\xff\xd8\xff\xe0 no jpeg", "an image of 12 bytes"),
        ("/nowhere/cat.jpg", "no image at '/nowhere/cat.jpg'"),
        ("a\0b", r"'a\\x00b' cannot be read"),
        ("/", "'/' cannot be read"),
        (__file__, "is not an image, or is damaged"),
        (None, "a NoneType is not an image"),
        (np.zeros((2, 2, 3), np.float32), r"float32 \[2, 2, 3\][\s\S]*array \* 255"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \[3, 8, 8\] is not an image: an image as an array is uint8"),
        (np.zeros((2, 2, 3), np.uint16), "an array uint16"),
        (np.zeros((0, 2, 3), np.uint8), "has no pixels"),
        (Image.new("RGB", (0, 5)), r"a Pillow image \(RGB\) has no pixels: 0x5"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is EPS, which is not read"),
    ],
)
def test_what_is_no_picture_is_named(source, message):
    with pytest.raises(ImageError, match=message) as caught:
        open_image(source)
    assert caught.value.hint


def test_a_users_image_is_left_alone():
    picture = corners().convert("RGBA")
    before = picture.tobytes()
    assert open_image(picture) is not picture
    assert (picture.mode, picture.tobytes()) == ("RGBA", before)


@pytest.mark.parametrize("spec", [SPEC, CROP, STRETCH], ids=["pad", "crop", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (1, 100_000), (20_000, 3)])
def test_extreme_shapes_keep_their_middle(size, spec):
    width, height = size
    array = np.zeros((height, width, 3), np.uint8)
    array[: (height + 1) // 2, : (width + 1) // 2] = WHITE
    square = bytes_of(pixels(array, spec))
    assert square.shape == (32, 32, 3)
    if spec.fit != "pad" and max(size) > 1:  # white turns to black in the middle of the long side
        across = square[:, 16, 0] if height > width else square[16, :, 0]
        assert across[0] > 240
        assert across[-1] < 15
        assert 100 < across[15:17].mean() < 155


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(7, 5), (64, 3), (3, 64), (32, 32), (1, 1), (100, 9000), (9000, 100), (20, 9000)])
def test_stretching_is_pillow_s_resizing(size, resample):
    width, height = size
    array = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ours = bytes_of(pixels(array, replace(STRETCH, resample=resample))).astype(int)
    filter = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[resample]
    expected = np.asarray(Image.fromarray(array).resize((32, 32), filter)).astype(int)
    # The last is resized by columns first, so that its rows do not grow to gigabytes: one rounding differs.
    assert np.abs(ours - expected).max() <= (1 if size == (20, 9000) else 0)


def test_a_long_picture_is_padded_like_a_short_one():
    long = np.zeros((3000, 12_000, 3), np.uint8)
    long[:, :6000] = WHITE
    difference = np.abs(pixels(long, SPEC) - pixels(long[::10, ::10], SPEC))
    assert difference.max() < 0.05


MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "LA", "PA", "RGBX", "RGBa", "La", "F"]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(MODES), st.integers(1, 90), st.integers(1, 90), st.sampled_from([SPEC, CROP]))
def test_any_mode_and_size_gives_pixels_or_an_image_error(mode, width, height, spec):
    picture = Image.new(mode, (width, height))
    if mode == "F":
        with pytest.raises(ImageError):
            pixels(picture, spec)
        return
    result = pixels(picture, spec)
    assert result.shape == (1, 3, 32, 32)
    colour = open_image(picture).getpixel((0, 0))
    seen = {tuple(value) for value in bytes_of(result).reshape(-1, 3).tolist()}
    assert seen == {colour} if spec is CROP or width == height else len(seen) > 1


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_file_gives_a_picture_or_an_image_error(data):
    """Pillow raises nearly anything on damage: whatever it is arrives as ImageError."""
    format = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "TGA", "PPM"]))
    whole = bytearray(encoded(Image.fromarray(np.load(STORED)["wide"]), format))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, min(len(whole), 300) - 1))] = data.draw(st.integers(0, 255))
    try:
        opened = open_image(bytes(whole))
    except ImageError:
        return
    assert opened.mode == "RGB"
    assert 0 not in opened.size


def test_colour_profiles_are_left_alone():
    """The published preprocessing ignores them: the numbers in the file are what the model saw."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert open_image(encoded(corners(), "PNG", icc_profile=profile)).getpixel((0, 0)) == RED
