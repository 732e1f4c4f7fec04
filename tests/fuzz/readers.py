"""Readers of what somebody else made: each is given bytes, and may answer or raise EdgeError; nothing else.

`READERS`: name -> seeds that it reads, and what is done with mutations of them.
"""

from __future__ import annotations

import atexit
import io
import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from random import Random

import numpy as np
from bench_fakes import run
from conftest import REPOSITORY, write_bundle
from fakes import byte_tokenizer, write_golden, write_model_bundle
from gguf_fakes import SPEC as GGUF_SPEC
from gguf_fakes import decoder_bytes, gguf_bytes, pair_mmproj
from llamacpp_states import LAYERS, ROWS, WIDTH, state
from mutations import mutated
from PIL import Image
from structures import Change, array, conversation, numbers, picture, protobuf, tensors, zipped

import edge
from edge.bench import guard, results
from edge.bench.output import Json
from edge.bundle import archive, manifest_file, safetensors
from edge.bundle.golden import Golden
from edge.bundle.manifest import Bundle, Manifest
from edge.decoders.embedding_table import TABLE, EmbeddingTable
from edge.errors import EdgeError
from edge.evaluation import answers_file
from edge.fetching.unpack import unpack
from edge.formats import executorch, gguf, onnx_graph, tflite
from edge.formats.gguf_adopted import check_adopted
from edge.formats.gguf_decoder import check_decoder
from edge.formats.llamacpp_state import require_state
from edge.inference import saved
from edge.inputs import image
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.types import Embeddings

CORPUS = Path(__file__).parent / "corpus"
DATA = REPOSITORY / "tests" / "data"
_POSITIONS = [2, 0, 1]
_SAID = "What is this?  ▁ <image> é 漢字 🙂\n"


@dataclass(frozen=True)
class Reader:
    """`feed` gets bytes, and a folder of its own to put them into; `suffix`: how a file of them ends."""

    seeds: Callable[[], list[bytes]]
    feed: Callable[[Path], object]
    suffix: str = ""
    structure: Change | None = None  # changes that the format allows

    def mutated(self, content: bytes, others: Sequence[bytes], random: Random) -> bytes:
        return mutated(content, others, random, self.structure)

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
    _asked(Manifest.from_json(data))


def _prompts() -> list[bytes]:
    return [json.dumps(manifest_file.read(path)["prompt"]).encode() for path in sorted(CORPUS.glob("*.manifest.json"))]


def _prompt(file: Path) -> None:
    """Pieces of a prompt, in a manifest that is sound otherwise."""
    try:
        said = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return
    _asked(Manifest.from_json({**manifest_file.read(CORPUS / "onnx.manifest.json"), "prompt": said}))


@cache
def _letters() -> Tokenizer:
    return Tokenizer(byte_tokenizer())


def _asked(manifest: Manifest) -> None:
    pictures = ()
    if manifest.sees and manifest.spec.prompt.image_tokens <= 4096 and manifest.spec.decoder.hidden <= 4096:
        shape = (manifest.spec.prompt.image_tokens, manifest.spec.decoder.hidden)
        pictures = (Embeddings(np.zeros(shape, np.float32), key="fuzzed"),)
    turns = [Turn.about(_SAID, pictures, "Yes."), Turn.about(_SAID)]
    segments(manifest.spec.prompt, _letters(), turns)
    segments(manifest.spec.prompt, _letters(), turns, system=_SAID)


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


def _golden() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_golden(bundle := write_model_bundle(Path(folder) / "bundle"))
        return [(bundle.path / "golden.safetensors").read_bytes()]


@cache
def _spoken() -> tuple[Bundle, bytes]:
    """A bundle, and a conversation with it."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    bundle = write_model_bundle(folder / "bundle")
    with edge.load(bundle.path, engine="null") as session:
        chat = session.chat(Image.new("RGB", (20, 30)), system="Short.")
        chat.ask("What?", max_tokens=2)
        chat.save(folder / "talk")
    return bundle, (folder / "talk").read_bytes()


def _decoder(file: Path) -> None:
    read = gguf.read(file)
    _either(lambda: check_decoder(read, GGUF_SPEC), lambda: check_adopted(read, GGUF_SPEC))


def _either(*checks: Callable[[], None]) -> None:
    """Each of them is made; raises EdgeError where none takes it."""
    refused: list[EdgeError] = []
    for check in checks:
        try:
            check()
        except EdgeError as error:
            refused.append(error)
    if len(refused) == len(checks):
        raise refused[0]


def _states() -> list[bytes]:
    return [state(_POSITIONS, kind, transposed=way).tobytes() for kind in ROWS for way in (False, True)]


def _state(file: Path) -> None:
    held = np.fromfile(file, np.uint8)
    _either(*(partial(require_state, held, len(_POSITIONS), LAYERS, WIDTH, kind) for kind in ROWS))


def _onnx_model() -> type:
    from onnx import ModelProto

    return ModelProto


def _results() -> list[bytes]:
    writer = Json()
    return [(writer.begin() + "".join(map(writer.row, run(seconds=30))) + writer.end()).encode()]


def _answers() -> list[bytes]:
    run_of = {field.name: "x" for field in fields(answers_file.Run)} | {"questions": 2, "whole_groups": False}
    line = {"id": "1", "image": "a.png", "group": "", "text": "yes", "score": 1.0}
    line |= {"stop": "stop", "tokens": 3, "seconds": 0.5}
    rows = ({"edge_eval": answers_file.SCHEMA, **run_of}, line, line | {"id": "2"})
    return [b"".join(json.dumps(row).encode() + b"\n" for row in rows)]


def _numbered(feed: Callable[[Path], object], seeds: Callable[[], list[bytes]], suffix: str) -> Reader:
    """Of a format whose numbers can be found by what our reader looks at."""
    return Reader(seeds, feed, suffix, numbers(feed, seeds, suffix))


READERS = {
    "manifest": Reader(files("*.manifest.json"), _manifest),
    "prompt": Reader(_prompts, _prompt),
    "gguf": _numbered(gguf.read, lambda: [decoder_bytes(), gguf_bytes(*pair_mmproj())], ".gguf"),
    "decoder": _numbered(_decoder, lambda: [decoder_bytes()], ".gguf"),
    "tflite": _numbered(tflite.read, files("*.tflite"), ".tflite"),
    "executorch": _numbered(executorch.read, files("attention/*.pte", root=DATA), ".pte"),
    "onnx": Reader(files("*.onnx"), _onnx, ".onnx", protobuf(_onnx_model)),
    "safetensors": Reader(_safetensors, safetensors.read, ".safetensors", tensors),
    "golden": Reader(_golden, Golden.load, ".safetensors", tensors),
    "conversation": Reader(lambda: [_spoken()[1]], lambda file: saved.read(file, _spoken()[0]), "", conversation),
    "state": Reader(_states, _state),
    "npy": Reader(_npy, _table, ".npy", array),
    "picture": Reader(_pictures, _picture, "", picture),
    "tokenizer": Reader(files("tokenizer.json", root=DATA), _tokenizer, ".json"),
    "archive": Reader(_archives, _unpack, ".zip", zipped),
    "results": Reader(_results, results.read, ".json"),
    "answers": Reader(_answers, answers_file.read, ".jsonl"),
    "baseline": Reader(lambda: [b'{"schema": 1, "bundles": {"a": {"engines": {"b": "1"}, "rows": []}}}'], guard.read),
}
