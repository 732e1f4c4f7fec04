"""Files that are no image that is read, under any name: each is called what it is."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from edge.errors import ImageError
from edge.inputs.image import open_image
from edge.inputs.image_kinds import KINDS, recognise


def iso(brand: bytes, *others: bytes) -> bytes:
    body = b"ftyp" + brand + bytes(4) + b"".join(others)
    return struct.pack(">I", len(body) + 4) + body + b"\0\0\0\x08free" + bytes(64)


def jpeg(marker: int, bits: int, *segments: int) -> bytes:
    """The head of a JPEG whose frame comes after application segments of these sizes."""
    data = b"\xff\xd8"
    for size in segments:
        data += b"\xff\xe2" + struct.pack(">H", size + 2) + bytes(size)
    return data + bytes([0xFF, marker]) + struct.pack(">HBHHB", 11, bits, 8, 8, 1) + b"\x01\x11\0" + bytes(64)


SAMPLES = [
    (iso(b"heic", b"mif1", b"heic"), "HEIC, as iPhones save them", "heif-convert"),
    (iso(b"heix", b"mif1"), "HEIC, as iPhones save them", "sips -s format jpeg"),
    (iso(b"hevc"), "HEIC, as iPhones save them", "Most Compatible"),
    (iso(b"mif1", b"mif1", b"heic"), "HEIF", "heif-convert"),
    (iso(b"mif1", b"avif", b"miaf"), "AVIF, damaged or unknown to this Pillow", "pillow"),
    (iso(b"crx ", b"isom"), r"raw file \(CR3\)", "darktable"),
    (iso(b"qt  "), "a QuickTime video", "ffmpeg"),
    (iso(b"isom", b"avc1", b"mp41"), r"a video \(MP4\)", "ffmpeg"),
    (iso(b"mp42"), r"a video \(MP4\)", "ffmpeg"),
    (iso(b"3gp5"), r"a video \(MP4\)", "ffmpeg"),
    (b"\0\0\0\x20moov" + bytes(40), "a QuickTime video", "ffmpeg"),
    (b"\x1a\x45\xdf\xa3\x01" + bytes(40), r"a video \(Matroska or WebM\)", "ffmpeg"),
    (b"RIFF\x10\0\0\0AVI LIST", r"a video \(AVI\)", "ffmpeg"),
    (b"\0\0\x01\xba" + bytes(40), r"a video \(MPEG\)", "ffmpeg"),
    (b"\xff\x0a" + bytes(40), "JPEG XL", "djxl"),
    (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL", "djxl"),
    (b"II*\0\x10\0\0\0CR\x02\0" + bytes(40), r"raw file \(CR2\)", "darktable"),
    (b"FUJIFILMCCD-RAW 0201" + bytes(40), r"raw file \(RAF\)", "darktable"),
    (b"IIRO\x08\0\0\0" + bytes(40), r"raw file \(ORF\)", "darktable"),
    (b"IIU\0\x18\0\0\0" + bytes(40), r"raw file \(RW2\)", "darktable"),
    (b"%PDF-1.7\n%\xe2\xe3", "a PDF document", "pdftoppm"),
    (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing", "inkscape"),
    (
        b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- made -->\n<!-- by -->\n<!DOCTYPE svg PUBLIC "x">\n<svg>',
        "an SVG",
        "rsvg",
    ),
    (b"\n<!DOCTYPE html>\n<html>", "a web page", "download the image itself"),
    (b"<!-- 404 --><HTML lang=en>", "a web page", "download the image itself"),
    (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "an XML document", "download"),
    (b'{"error": "not found"}', "JSON text", "download"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "a Git LFS pointer", "git lfs pull"),
    (b"PK\x03\x04" + bytes(40), "an archive", "unpack"),
    (b"8BPS\0\x01" + bytes(40), r"\(PSD\)", "export"),
    (b"gimp xcf file\0" + bytes(40), r"\(XCF\)", "export"),
    (bytes(128) + b"DICM" + bytes(40), "DICOM", "dcmj2pnm"),
    (b"\x76\x2f\x31\x01" + bytes(40), "OpenEXR", "8 bits"),
    (b"#?RADIANCE\n", "Radiance HDR", "8 bits"),
    (b"PF\n2 2\n-1.0\n" + bytes(48), "PFM", "8 bits"),
    (b"P7\nWIDTH 1\nHEIGHT 1\n", "PAM", "magick"),
    (b"SIMPLE  =                    T" + bytes(40), "FITS", "8 bits"),
    (b"\x93NUMPY\x01\0" + bytes(40), "a NumPy array", "numpy.load"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS, which is not read", "gs"),
    (b"%!PS-Adobe-3.0\n", "a PostScript document", "gs"),
    (jpeg(0xC1, 12), r"a JPEG of a rare kind \(12 bits\)", "magick"),
    (jpeg(0xC3, 8, 65_000, 65_000, 9_000), r"a JPEG of a rare kind \(8 bits, lossless\)", "magick"),
    (jpeg(0xC3, 16), r"a JPEG of a rare kind \(16 bits, lossless\)", "magick"),
    (jpeg(0xF7, 8, 0), r"\(8 bits, JPEG-LS\)", "magick"),
]


@pytest.mark.parametrize(("data", "name", "hint"), SAMPLES, ids=lambda value: str(value)[:40])
def test_it_is_called_what_it_is(data, name, hint, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    for source in (path, data):
        with pytest.raises(ImageError, match=rf"is [\s\S]*{name}") as caught:
            open_image(source)
        assert hint in caught.value.hint
        assert "which is not read" in caught.value.message
        assert "not an image, or" not in caught.value.message


@pytest.mark.parametrize("format", ["SGI", "DDS", "PCX", "ICNS"])
def test_what_only_pillow_reads_is_named(format):
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, format)
    with pytest.raises(ImageError, match=rf"is [\s\S]*{format}[\s\S]*which is not read") as caught:
        open_image(file.getvalue())
    assert "PNG" in caught.value.hint


@pytest.mark.parametrize(
    "data",
    [
        b"no image at all, only some words",
        bytes(5000),
        b"\xff\xd8\xff\xe0 no jpeg",
        jpeg(0xC0, 8),
        jpeg(0xC0, 161),  # a damaged precision
        jpeg(0xC3, 8)[:4],
        b"\x89PNG\r\n\x1a\n" + bytes(40),
        b"II*\0" + bytes(40),
        b"MM\0*" + b"\xff" * 40,
        b"<!-- -->" * 10_000,
        b"<!--" * 10_000 + b"-->",
        b"<?xml" * 10_000,
        b" " * 100_000,
        b"GIF89a",
    ],
    ids=lambda value: str(value[:12]),
)
def test_unknown_and_damaged_files_stay_so(data):
    with pytest.raises(ImageError, match=r"is not an image, or is damaged|cannot be read|an XML document"):
        open_image(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "ICO", "PPM", "TGA"])
def test_no_kind_claims_an_image_that_is_read(format):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    file = io.BytesIO()
    image.save(file, format)
    assert recognise(file.getvalue()) is None
    assert open_image(file.getvalue()).size == (40, 40) or format == "ICO"


def test_every_kind_has_a_sample():
    """The table's rare rows are held by their patterns alone; the usual ones by a file."""
    seen = {recognise(data)[0] for data, *_ in SAMPLES if recognise(data)}
    assert len(seen & {kind.name for kind in KINDS}) >= 25
    assert all(kind.hint and kind.name for kind in KINDS)
