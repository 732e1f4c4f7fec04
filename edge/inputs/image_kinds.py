"""Files that are given as images and are not read: what they truly are, by their first bytes, and what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass

HEAD = 1 << 18  # bytes of a file that are looked at: a JPEG's metadata lie before its frame
MAGIC = 4096  # of which a kind shows in these

USUAL = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # how JPEG and PNG begin

TO_PNG = "convert it to PNG or JPEG: magick IMAGE image.png"
HEIC = (
    "convert it to JPEG: heif-convert IMAGE image.jpg (Linux, libheif), sips -s format jpeg IMAGE --out image.jpg "
    "(macOS); on an iPhone, Settings > Camera > Formats > Most Compatible makes the next ones JPEG"
)
AVIF = "pip install -U 'pillow>=11.3', which reads it, or convert it: avifdec IMAGE image.png"
RAW = "develop it first: darktable-cli IMAGE image.jpg, or export a JPEG from the camera's program"
DRAWING = "draw it as PNG: inkscape IMAGE --export-filename=image.png, or rsvg-convert IMAGE -o image.png"
DRAWN = "draw it as PNG: gs -sDEVICE=png16m -r150 -o page%d.png IMAGE"
PAGE = "draw the page as PNG: pdftoppm -png -r 150 IMAGE page"
FRAME = "take one frame: ffmpeg -i VIDEO -frames:v 1 image.png"
AGAIN = "download the image itself again"
NUMBERS = "scale it to 8 bits, so that 0 is black and 255 is white, and save it as PNG"


@dataclass(frozen=True)
class Kind:
    pattern: re.Pattern[bytes]  # of the file's first bytes
    name: str  # "… is NAME, which is not read"
    hint: str


def _kind(pattern: bytes, name: str, hint: str) -> Kind:
    return Kind(re.compile(pattern, re.DOTALL), name, hint)


# ISO media: its size, "ftyp", the main brand, its version, other brands.
_AVIF = "AVIF, damaged or unknown to this Pillow"
_ISO = rb".{4}ftyp"
_TEXT = rb"(?:\xef\xbb\xbf)?\s*+"
_XML = rb"(?:<\?xml[^>]*+>\s*+)?(?><!--.*?-->\s*+)*+"  # nothing is tried twice, whatever the file says
KINDS = (
    _kind(_ISO + rb"(?:avif|avis)", _AVIF, AVIF),
    _kind(_ISO + rb"crx ", "a camera's raw file (CR3)", RAW),
    _kind(_ISO + rb"(?:hei[cxms]|hev[cxms])", "HEIC, as iPhones save them", HEIC),
    _kind(_ISO + rb"(?:mif1|msf1|mif2|miaf).{4}(?:.{4}){0,14}?av(?:if|is|01)", _AVIF, AVIF),
    _kind(_ISO + rb"(?:mif1|msf1|mif2|miaf)", "HEIF, the kind of file that iPhones save", HEIC),
    _kind(_ISO + rb"qt  ", "a QuickTime video", FRAME),
    _kind(_ISO, "a video (MP4)", FRAME),
    _kind(rb".{4}(?:moov|mdat|wide|free|skip)", "a QuickTime video", FRAME),
    _kind(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", "convert it to PNG: djxl IMAGE image.png"),
    _kind(rb"II\*\0.{4}CR", "a camera's raw file (CR2)", RAW),
    _kind(rb"FUJIFILMCCD-RAW", "a camera's raw file (RAF)", RAW),
    _kind(rb"IIR[OS]|MMOR", "a camera's raw file (ORF)", RAW),
    _kind(rb"IIU\0", "a camera's raw file (RW2)", RAW),
    _kind(rb"FOVb", "a camera's raw file (X3F)", RAW),
    _kind(rb"\0MR[MI]", "a camera's raw file (MRW)", RAW),
    _kind(rb"II\xbc[\0\x01]", "JPEG XR", TO_PNG),
    _kind(rb"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)", FRAME),
    _kind(rb"RIFF.{4}AVI ", "a video (AVI)", FRAME),
    _kind(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a video (WMV)", FRAME),
    _kind(rb"FLV\x01", "a video (FLV)", FRAME),
    _kind(rb"OggS", "a video or sound (Ogg)", FRAME),
    _kind(rb"\0\0\x01[\xb3\xba]", "a video (MPEG)", FRAME),
    _kind(rb"RIFF.{4}WAVE|ID3|fLaC", "sound", "give an image"),
    _kind(rb"\s*%PDF-", "a PDF document", PAGE),
    _kind(rb"\xc5\xd0\xd3\xc6|\x04?%!PS-Adobe-[\d.]+ EPSF", "EPS", DRAWN),
    _kind(rb"\x04?%!PS", "a PostScript document", DRAWN),
    _kind(_TEXT + _XML + rb"(?i:<!DOCTYPE\s+svg[^>]*>\s*)?<svg\b", "an SVG drawing", DRAWING),
    _kind(_TEXT + _XML + rb"(?i:<(?:!DOCTYPE html|html|head|body)\b)", "a web page (HTML)", AGAIN),
    _kind(_TEXT + rb"<\?xml", "an XML document", AGAIN),
    _kind(rb"version https://git-lfs", "a Git LFS pointer", "git lfs pull"),
    _kind(_TEXT + rb"[{\[]\s*[\"{\[]", "JSON text", AGAIN),
    _kind(rb"\x1f\x8b|PK\x03\x04|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf", "an archive", "unpack it first"),
    _kind(rb"8BP[SB]", "a Photoshop document (PSD)", "export it as PNG, or magick 'IMAGE[0]' image.png"),
    _kind(rb"gimp xcf", "a GIMP document (XCF)", "export it as PNG"),
    _kind(rb"\x01\xda[\0\x01][\x01\x02]", "SGI", TO_PNG),
    _kind(rb"DDS ", "DDS (a texture)", TO_PNG),
    _kind(rb"SIMPLE  =", "FITS (measured numbers)", NUMBERS),
    _kind(rb".{128}DICM", "DICOM", "convert it to PNG, with its window applied: dcmj2pnm +Wi 1 IMAGE image.png"),
    _kind(rb"\x76\x2f\x31\x01", "OpenEXR (floating-point numbers)", NUMBERS),
    _kind(rb"#\?(?:RADIANCE|RGBE)", "Radiance HDR (floating-point numbers)", NUMBERS),
    _kind(rb"PF\s|Pf4\s", "a floating-point map (PFM)", NUMBERS),
    _kind(rb"P7\n", "PAM", TO_PNG),
    _kind(rb"\x93NUMPY", "a NumPy array", "give the array itself: numpy.load(FILE), uint8"),
    _kind(rb"icns", "an icon (ICNS)", TO_PNG),
    _kind(rb"\0\0\x02\0[^\0]", "a cursor (CUR)", TO_PNG),
    _kind(rb"\x0a[\0\x02-\x05]\x01[\x01\x02\x04\x08]", "PCX", TO_PNG),
    _kind(rb"qoif", "QOI", TO_PNG),
    _kind(rb"\xd7\xcd\xc6\x9a|.{40} EMF", "a Windows drawing (WMF or EMF)", TO_PNG),
    _kind(rb"AT&TFORM", "a DjVu document", "draw the page as TIFF: ddjvu -format=tiff -page=1 IMAGE image.tif"),
    _kind(rb"BPG\xfb", "BPG", "convert it to PNG: bpgdec -o image.png IMAGE"),
    _kind(rb"FLIF", "FLIF", "convert it to PNG: flif -d IMAGE image.png"),
    _kind(rb"\xff\xd8\xff\xf7|\xff\xd8\xff\xe8\x00\x20SPIFF", "JPEG-LS", TO_PNG),
)
# The start of a frame in a JPEG: what a decoder of 8-bit baseline and progressive files lacks.
FRAMES = {
    0xC3: "lossless",
    0xC5: "hierarchical",
    0xC6: "hierarchical",
    0xC7: "hierarchical",
    0xC9: "arithmetic",
    0xCA: "arithmetic",
    0xCB: "lossless",
    0xCD: "hierarchical",
    0xCE: "hierarchical",
    0xF7: "JPEG-LS",
}


def recognise(head: bytes) -> tuple[str, str] | None:
    """What a file truly is and a hint, from its first bytes; None when they say nothing."""
    kind = next((kind for kind in KINDS if kind.pattern.match(head[:MAGIC])), None)
    if kind is not None:
        return kind.name, kind.hint
    frame = _jpeg_frame(head)
    return (frame, "convert it to PNG: magick IMAGE -depth 8 image.png") if frame else None


def _jpeg_frame(head: bytes) -> str | None:
    """What is special about a JPEG that a usual decoder refuses: more than 8 bits, or a process of its own."""
    at = 2
    while head.startswith(b"\xff\xd8") and len(head) >= at + 5 and head[at] == 0xFF:
        marker, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4], "big")
        if marker in FRAMES or 0xC0 <= marker <= 0xC2:
            bits, process = head[at + 4], FRAMES.get(marker)
            if 2 <= bits <= 16 and (bits != 8 or process):
                return f"a JPEG of a rare kind ({bits} bits{', ' + process if process else ''})"
            return None
        at += 1 if marker == 0xFF else 2 + length
    return None
