"""A copy of a GGUF file with another head. What is not changed stays as it is, byte for byte."""

from __future__ import annotations

import mmap
import shutil
import struct
from pathlib import Path

from edge.formats.gguf import GGUF, KINDS, MAGIC
from exporters.gguf.fault import Change, Value
from exporters.gguf.names import POSITIONS

_CODES = {name: code for code, (name, *_) in KINDS.items()}
_AT_ONCE = 1 << 22  # bytes


def rewrite(file: GGUF, target: Path, change: Change) -> None:
    """Write `file` with `change` as `target`; no tensor is held in memory, but the positions where they are rolled."""
    with file.path.open("rb") as source, target.open("xb") as out:
        with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
            head = _head(file, data, change)
        out.write(head)
        source.seek(file.data)
        shutil.copyfileobj(source, out, _AT_ONCE)
        if change.rolled:
            tensor = file.tensors[POSITIONS]
            source.seek(tensor.offset)
            rows = source.read(tensor.bytes)
            row = tensor.bytes // tensor.shape[1]
            out.seek(len(head) + tensor.offset - file.data)
            out.write(rows[row:] + rows[:row])


def _head(file: GGUF, data: mmap.mmap, change: Change) -> bytes:
    settings = {key: data[place] for key, place in file.places.items()}
    settings |= {key: _text(key) + _value(value) for key, value in change.settings.items()}
    pieces = [MAGIC, struct.pack("<IQQ", file.version, len(file.tensors), len(settings)), *settings.values()]
    for name, tensor in file.tensors.items():
        axes, place = len(tensor.shape), (_CODES[tensor.kind], tensor.offset - file.data)
        pieces += _text(change.names.get(name, name)), struct.pack(f"<I{axes}QIQ", axes, *tensor.shape, *place)
    head = b"".join(pieces)
    return head + bytes(-len(head) % int(file.settings.get("general.alignment", 32)))


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    """The number of its type, and the value; lists are of int32 or float32."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    code, letter = (5, "i") if all(isinstance(entry, int) for entry in value) else (6, "f")
    return struct.pack(f"<IIQ{len(value)}{letter}", 9, code, len(value), *value)
