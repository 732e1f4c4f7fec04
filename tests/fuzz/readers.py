"""Readers of what somebody else made: each is given bytes, and may answer or raise EdgeError; nothing else.

`READERS`: name -> seeds that it reads, and what is done with mutations of them.
"""

from __future__ import annotations

import io
import shutil
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from bench_fakes import run
from conftest import REPOSITORY, write_bundle
from fakes import byte_tokenizer
from gguf_fakes import decoder_bytes, gguf_bytes, pair_mmproj
from PIL import Image

from edge.bench import guard, results
from edge.bench.output import Json
from edge.bundle import archive, manifest_file, safetensors
from edge.bundle.golden import Golden
from edge.bundle.manifest import Bundle, Manifest
from edge.decoders.embedding_table import TABLE, EmbeddingTable
from edge.errors import EdgeError
from edge.fetching.unpack import unpack
from edge.formats import executorch, gguf, onnx_graph, tflite
from edge.inputs import image
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.types import Embeddings

CORPUS = Path(__file__).parent / "corpus"
DATA = REPOSITORY / "tests" / "data"
_SAID = "What is this?  ▁ <image> é 漢字 🙂\n"


@dataclass(frozen=True)
class Reader:
    """`feed` gets bytes, and a folder of its own to put them into; `suffix`: how a file of them ends."""

    seeds: Callable[[], list[bytes]]
    feed: Callable[[Path], object]
    suffix: str = ""

    def read(self, content: bytes, folder: Path) -> bool:
        """Whether it was taken. Raises whatever is no EdgeError: a finding."""
        file = folder / f"fuzzed{self.suffix}"
        file.write_bytes(content)
        try:
            self.feed(file)
        except EdgeError:
            return False
        return True


def files(*patterns: str, root: Path = CORPUS) -> Callable[[], list[bytes]]:
    return lambda: [path.read_bytes() for pattern in patterns for path in sorted(root.glob(pattern))]


def _manifest(file: Path) -> None:
    try:
        data = manifest_file.read(file)
    except (ValueError, RecursionError):  # `Bundle.open` says so
        return
    manifest = Manifest.from_json(data)
    pictures = ()
    if manifest.sees and manifest.spec.prompt.image_tokens <= 4096 and manifest.spec.decoder.hidden <= 4096:
        shape = (manifest.spec.prompt.image_tokens, manifest.spec.decoder.hidden)
        pictures = (Embeddings(np.zeros(shape, np.float32), key="fuzzed"),)
    segments(manifest.spec.prompt, Tokenizer(byte_tokenizer()), [Turn.about(_SAID, pictures)])


def _tokenizer(file: Path) -> None:
    tokenizer = Tokenizer.open(file)
    tokenizer.decode(tokenizer.encode(_SAID))


def _picture(file: Path) -> None:
    opened = image.open_image(file)
    if opened.width * opened.height <= 1 << 20:
        image.pixels(opened, _spec())


@cache
def _spec() -> image.ImageSpec:
    return Manifest.from_json(manifest_file.read(CORPUS / "onnx.manifest.json")).spec.image


def _onnx(file: Path) -> None:
    numbers = file.with_name("decoder.onnx.data")
    if not numbers.exists():
        numbers.write_bytes(bytes(65536))
    onnx_graph.check(file, (file, numbers))


def _pictures() -> list[bytes]:
    found = []
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 4)).astype(np.uint8)
    colours = [("RGB", format) for format in ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TGA")]
    for mode, format in (*colours, ("RGBA", "PNG"), ("P", "GIF"), ("L", "TIFF"), ("I;16", "TIFF"), ("I;16", "PNG")):
        picture = Image.fromarray(noise).convert("RGBA")
        made = Image.fromarray(noise[..., 0].astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
        file = io.BytesIO()
        made.save(file, format)
        found.append(file.getvalue())
    return found


def _npy() -> list[bytes]:
    found = []
    for table in (np.zeros((5, 4), np.float32), np.ones((5, 4), np.float16)):
        file = io.BytesIO()
        np.save(file, table)
        found.append(file.getvalue())
    return found


def _table(file: Path) -> None:
    table = EmbeddingTable.open([file.replace(file.with_name(TABLE))], 5, 4)
    table.gather([0, 4], np.empty((2, 4), np.float32))


def _safetensors() -> list[bytes]:
    head = b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},'
    head += b'"b":{"dtype":"I32","shape":[1],"data_offsets":[24,28]}}'
    return [struct.pack("<Q", len(head)) + head + bytes(28)]


def _archives() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        archive.package(write_bundle(Path(folder) / "bundle"), Path(folder) / "b.zip")
        return [Path(folder, "b.zip").read_bytes()]


def _unpack(file: Path) -> None:
    shutil.rmtree(file.with_name("unpacked"), ignore_errors=True)
    unpack(file, file.with_name("unpacked"))
    Bundle.open(file.with_name("unpacked"))


def _results() -> list[bytes]:
    writer = Json()
    return [(writer.begin() + "".join(map(writer.row, run(seconds=30))) + writer.end()).encode()]


READERS = {
    "manifest": Reader(files("*.manifest.json"), _manifest),
    "gguf": Reader(lambda: [decoder_bytes(), gguf_bytes(*pair_mmproj())], gguf.read, ".gguf"),
    "tflite": Reader(files("*.tflite"), tflite.read, ".tflite"),
    "executorch": Reader(files("attention/*.pte", root=DATA), executorch.read, ".pte"),
    "onnx": Reader(files("*.onnx"), _onnx, ".onnx"),
    "safetensors": Reader(_safetensors, safetensors.read, ".safetensors"),
    "golden": Reader(_safetensors, Golden.load, ".safetensors"),
    "npy": Reader(_npy, _table, ".npy"),
    "picture": Reader(_pictures, _picture),
    "tokenizer": Reader(files("tokenizer.json", root=DATA), _tokenizer, ".json"),
    "archive": Reader(_archives, _unpack, ".zip"),
    "results": Reader(_results, results.read, ".json"),
    "baseline": Reader(lambda: [b'{"schema": 1, "bundles": {"a": {"engines": {"b": "1"}, "rows": []}}}'], guard.read),
}
