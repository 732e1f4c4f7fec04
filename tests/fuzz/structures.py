"""Mutations that know a format: a file stays well-formed around what is changed, so that deeper checks are reached."""

from __future__ import annotations

import io
import json
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from mutations import NUMBERS, changed_json

from edge.bundle import safetensors
from edge.formats import executorch, flatbuffers, gguf, xnnpack_graph
from edge.inference import saved
from edge.types import Array

Change = Callable[[bytes, Random], bytes]
Place = tuple[int, int]  # of a number: where it begins, and its bytes


def numbers(feed: Callable[[Path], object], seeds: Callable[[], list[bytes]], suffix: str) -> Change:
    """Changes the numbers that our own reader looks at, where it looks at them: lengths, offsets, counts and kinds."""

    @cache
    def known() -> dict[int, list[Place]]:
        with tempfile.TemporaryDirectory() as folder:
            return {len(seed): watched(feed, seed, Path(folder, f"seed{suffix}")) for seed in seeds()}

    def change(content: bytes, random: Random) -> bytes:
        data = bytearray(content)
        if places := known().get(len(data)):  # bytes that were taken out or put in move all that follows
            for _ in range(random.choice((1, 1, 2, 3))):
                _renumber(data, places, random)
        return bytes(data)

    return change


def watched(feed: Callable[[Path], object], seed: bytes, file: Path) -> list[Place]:
    """Where the numbers of a sound file lie that our reader looks at."""
    found: set[Place] = set()
    file.write_bytes(seed)
    with _watching(found):
        feed(file)
    return sorted(found)


@contextmanager
def _watching(found: set[Place]) -> Iterator[None]:
    number, counted = flatbuffers.number, gguf._Reader._number

    def noted(data: Any, at: Any, dtype: str) -> Any:
        size = np.dtype(dtype).itemsize
        found.update((int(place), size) for place in np.ravel(at))
        return number(data, at, dtype)

    def seen(self: Any, kind: struct.Struct) -> Any:
        found.add((self._at, kind.size))
        return counted(self, kind)

    places: Sequence[tuple[Any, str, Any, Any]] = (
        *((module, "number", noted, number) for module in (flatbuffers, executorch, xnnpack_graph)),
        (gguf._Reader, "_number", seen, counted),
    )
    for owner, name, ours, _ in places:
        setattr(owner, name, ours)
    try:
        yield
    finally:
        for owner, name, _, theirs in places:
            setattr(owner, name, theirs)


def _renumber(data: bytearray, places: Sequence[Place], random: Random) -> None:
    at, size = random.choice(places)
    before = int.from_bytes(data[at : at + size], "little")
    other, width = random.choice(places)
    ways = (
        before + random.choice((-4, -1, 1, 4)),
        before * 2,
        random.choice(NUMBERS),
        random.randrange(len(data)),
        int.from_bytes(data[other : other + width], "little"),  # what is sound elsewhere
        other - at,  # another table, list or text
    )
    data[at : at + size] = (random.choice(ways) % 256**size).to_bytes(size, "little")


def protobuf(kind: Callable[[], type]) -> Change:
    """Changes fields of a message of protocol buffers, found by its description."""

    def change(content: bytes, random: Random) -> bytes:
        message = kind()()
        try:
            message.ParseFromString(content)
        except Exception:  # of bytes that another mutation left
            return content
        for _ in range(random.choice((1, 1, 2))):
            change_message(message, random)
        return bytes(message.SerializePartialToString())

    return change


def change_message(message: Any, random: Random) -> None:
    """One field somewhere in it, by a walk from the top: changed, taken away, repeated, or in place of another."""
    while set_fields := message.ListFields():
        field, value = random.choice(set_fields)
        repeated, nested = field.is_repeated, field.type == field.TYPE_MESSAGE
        if repeated and random.random() < 0.25:
            _change_list(message, field.name, value, nested, random)
            return
        if nested and random.random() < 0.95:
            message = random.choice(value) if repeated else value
            continue
        if random.random() < 0.15 or nested:
            message.ClearField(field.name)
        elif repeated:
            place = random.randrange(len(value))
            with suppress(ValueError):  # a field takes numbers of its own width, and some only those that have a name
                value[place] = _other(value[place], random)
        else:
            with suppress(ValueError):
                setattr(message, field.name, _other(value, random))
        return


def _change_list(message: Any, name: str, items: Any, nested: bool, random: Random) -> None:
    place, way = random.randrange(len(items)), random.randrange(3)
    if way == 0:
        del items[place]
    elif nested and way == 1:
        items.add().CopyFrom(items[place])
    elif nested:
        items[place].CopyFrom(random.choice(list(items)))
    elif way == 1:
        items.append(items[place])
    else:
        items[place] = random.choice(list(items))


def _other(value: Any, random: Random) -> Any:
    """Of the same kind, within what a field of 32 bits takes."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice((value + 1, max(value - 1, 0), value * 2 % 2**31, *(n for n in NUMBERS if n < 2**31)))
    if isinstance(value, float):
        return random.choice((0.0, -value, value * 2, 1e30, float("inf"), float("nan")))
    if isinstance(value, str):
        return random.choice(("", value + "x", value[:-1], value * 2, "input_ids", "../" + value))
    data = bytearray(value[: 1 << 16])
    way = random.randrange(4)
    if way == 0 or not data:
        return bytes(data[: len(data) // 2])
    if way == 1:
        return bytes(value) + bytes(value[:8])
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data) + bytes(value[1 << 16 :])


def tensors(content: bytes, random: Random) -> bytes:
    """A file of safetensors with another header, whose length is right."""
    length = int.from_bytes(content[:8], "little")
    head = changed_json(content[8 : 8 + length], random)
    if head is None:
        return content
    data = content[8 + length :]
    if random.random() < 0.2:
        data = data[: random.randrange(len(data) + 1)] + bytes(random.choice((0, 1, 4)))
    return len(head).to_bytes(8, "little") + head + data


def array(content: bytes, random: Random) -> bytes:
    """A `.npy` file of another kind or shape, whose header is a literal of the right length."""
    shape = ", ".join(str(random.choice((*NUMBERS, 4, 5, -1))) for _ in range(random.randrange(5)))
    kind = random.choice(("<f4", "<f2", ">f4", "|u1", "<i8", "|O", "<U9", "|V4", "<f4,<f4", "<M8[s]", "|S0", "x"))
    head = f"{{'descr': {kind!r}, 'fortran_order': {random.choice((True, False, 0))}, 'shape': ({shape},)}}"
    head += " " * (-(len(head) + 11) % 64) + "\n"
    version = random.choice((1, 1, 2, 3))
    size = struct.pack("<H" if version == 1 else "<I", len(head))
    return b"\x93NUMPY" + bytes((version, 0)) + size + head.encode() + content[-80:]


def zipped(content: bytes, random: Random) -> bytes:
    """An archive with other members, whose sums are right."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            members = [(info, file.read(info)) for info in file.infolist() if info.file_size < 1 << 20]
    except Exception:  # of bytes that another mutation left
        return content
    made = io.BytesIO()
    chosen = random.randrange(len(members)) if members else -1
    with zipfile.ZipFile(made, "w") as file:
        for number, (info, data) in enumerate(members):
            if number == chosen:
                _change_member(file, info, data, random)
            else:
                file.writestr(info, data)
    return made.getvalue()


def _change_member(file: zipfile.ZipFile, info: zipfile.ZipInfo, data: bytes, random: Random) -> None:
    way = random.randrange(5)
    if way == 0:
        return
    if way == 1:
        info.filename = random.choice(
            ("../" + info.filename, "/" + info.filename, "a/" * 300, "x" * 300, "c:\\x", "\ud7ff")
        )
    elif way == 2:
        info.compress_type = random.choice(
            (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        )
    elif way == 3:
        data = changed_json(data, random) or data[: len(data) // 2]
    else:
        info.external_attr = random.choice((0xA1FF0000, 0x41ED0000, 0xFFFFFFFF, 0))
    file.writestr(info, data)


def picture(content: bytes, random: Random) -> bytes:
    """A PNG with one chunk changed, whose sum is right; any other picture as it is."""
    if not content.startswith(b"\x89PNG"):
        return content
    chunks, at = [], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    place, way = random.randrange(len(chunks)), random.randrange(4)
    kind, data = chunks[place]
    changed = bytearray(data)
    if way == 0:
        chunks[place:place] = [chunks[place]] * random.choice((1, 2, 200))
    elif way == 1:
        chunks[place] = (random.choice((b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"eXIf", b"acTL", b"gAMA")), data)
    elif changed:
        changed[random.randrange(len(changed))] = random.choice((0, 1, 2, 3, 4, 6, 8, 16, 127, 128, 255))
        chunks[place] = (kind, bytes(changed))
    return content[:8] + b"".join(map(_chunk, chunks))


def _chunk(chunk: tuple[bytes, bytes]) -> bytes:
    kind, data = chunk
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def conversation(content: bytes, random: Random) -> bytes:
    """A saved conversation that says or holds something else, whose checksum is right."""
    try:
        arrays = safetensors._read(content)
    except Exception:  # of bytes that another mutation left
        return content
    arrays.pop("checksum", None)
    name = random.choice(sorted(arrays)) if arrays else "conversation"
    said = arrays.get("conversation")
    if said is not None and random.random() < 0.5:
        text = changed_json(said.tobytes(), random) or json.dumps(None).encode()
        arrays["conversation"] = np.frombuffer(text, np.uint8)
    elif name in arrays:
        found = arrays[name].reshape(-1)
        found[: len(found) // 2] = random.choice((-1, 0, 1, 127)) if found.dtype.kind == "i" else found[0:1]
        arrays[name] = found[: random.choice((0, 1, len(found)))]
    arrays["checksum"] = saved._checksum(arrays)
    return _written(arrays)


def _written(arrays: dict[str, Array]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        safetensors.write(file := Path(folder, "written"), arrays)
        return file.read_bytes()
