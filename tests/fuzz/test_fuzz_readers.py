"""A few mutations for every reader, always the same ones; make fuzz goes on from there. What was found is kept here."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from random import Random

import pytest

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


NAMES = (
    *("manifest", "prompt", "gguf", "decoder", "tflite", "executorch", "onnx", "safetensors", "golden"),
    *("conversation", "state", "npy", "picture", "tokenizer", "archive", "results", "answers", "baseline"),
)


def test_these_are_all_readers() -> None:
    from readers import READERS

    assert set(NAMES) == READERS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_mutation_is_read_or_refused(name: str, tmp_path: Path) -> None:
    from readers import READERS

    reader, random = READERS[name], Random(name)
    seeds = reader.seeds()
    for seed in seeds:
        assert reader.read(seed, tmp_path)
    taken = [reader.read(reader.mutated(random.choice(seeds), seeds, random), tmp_path) for _ in range(100)]
    assert not all(taken), "no mutation was refused"


def npy(head: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(80)


FOUND = {
    "npy": [
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (5, 4"),  # tokenize.TokenError
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (5, 4)}}"),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (5, 10**99999)}"),
        npy(b"{'descr': '|S0', 'fortran_order': False, 'shape': (5, 4)}"),  # SIGFPE in numpy.memmap
    ],
    "tokenizer": [json.dumps({"version": "1.0", "normalizer": {"type": {}}, "model": {"type": "BPE"}}).encode()],
}


@pytest.mark.parametrize(("name", "content"), [(name, one) for name, found in FOUND.items() for one in found])
def test_what_was_found_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    from readers import READERS

    assert not READERS[name].read(content, tmp_path)


def test_a_file_without_a_name_is_passed_over(tmp_path: Path) -> None:
    """Python 3.11's zipfile cannot tell whether it is a folder."""
    from readers import READERS

    (seed,) = READERS["archive"].seeds()
    place = tmp_path / "nameless.zip"
    place.write_bytes(seed)
    with zipfile.ZipFile(place, "a") as archive:
        archive.writestr(zipfile.ZipInfo("x"), b"")
        archive.filelist[-1].filename = ""
    assert READERS["archive"].read(place.read_bytes(), tmp_path)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    from readers import READERS

    (seed,) = READERS["archive"].seeds()
    name = seed.rindex(b"tokenizer.json")
    flags = seed.rindex(b"PK\x01\x02", 0, name) + 8
    named = seed[:flags] + struct.pack("<H", 0x800) + seed[flags + 2 : name] + b"\xf1" + seed[name + 1 :]
    assert not READERS["archive"].read(named, tmp_path)


def test_an_archive_that_places_a_file_outside_itself_is_refused(tmp_path: Path) -> None:
    from readers import READERS

    (seed,) = READERS["archive"].seeds()
    end = seed.rindex(b"PK\x05\x06")
    outside = seed[: end + 16] + struct.pack("<I", 7) + seed[end + 20 :]  # where the directory begins
    assert not READERS["archive"].read(outside, tmp_path)
