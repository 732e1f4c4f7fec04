"""safetensors: the file format of named tensors (https://github.com/huggingface/safetensors), in NumPy.

Eight bytes, the little-endian length N of the header; N bytes of JSON, which maps each name to `dtype`, `shape` and
`data_offsets`, the tensor's first byte and the one after its last, counted from the end of the header; then the bytes,
without a gap. The header may hold texts under `__metadata__`, and end in spaces.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import BundleError
from edge.types import Array

DTYPES = {"F32": "<f4", "F16": "<f2", "I32": "<i4", "I64": "<i8", "I8": "i1", "U8": "u1"}
_NAMES = {np.dtype(kind): name for name, kind in DTYPES.items()}
_METADATA = "__metadata__"
_MOST = 1 << 20  # bytes of a header that is read here: it names a few arrays
_DIMENSIONS = 8


def write(path: Path, arrays: Mapping[str, Array]) -> None:
    """The widest numbers first, and the header a multiple of eight, so that a mapped file is aligned."""
    header: dict[str, Any] = {}
    end = 0
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    for name, array in ordered:
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype.newbyteorder("<")],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in ordered:
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())


def read(path: Path) -> dict[str, Array]:
    """All tensors by name. Nothing is allocated that the file does not hold. Raises BundleError on a file that is not
    in the format, or has a dtype that NumPy lacks."""
    try:
        content = path.read_bytes()
        return _read(content)
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise BundleError(f"{path.name} cannot be read: {error}", hint="copy or export the bundle again") from error


def _read(content: bytes) -> dict[str, Array]:
    length, data = int.from_bytes(content[:8], "little"), memoryview(content)[8:]
    if len(content) < 8 or length > min(len(data), _MOST):
        raise ValueError(f"a header of {length} bytes, in a file of {len(content)}")
    header = json.loads(bytes(data[:length]).decode(), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError(f"{_METADATA} is no object of texts")
    data = data[length:]
    spans = {name: _entry(name, entry) for name, entry in header.items()}
    position = 0
    for name, (_, _, start, end) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if start != position:
            raise ValueError(f"{name!r} begins at byte {start}, expected {position}")
        position = end
    if position != len(data):
        raise ValueError(f"its tensors take {position} bytes, and it holds {len(data)}")
    return {
        name: np.frombuffer(data[start:end], kind).reshape(shape).copy()
        for name, (kind, shape, start, end) in spans.items()
    }


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header names something twice")
    return found


def _entry(name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    """dtype, shape, first byte and the one after the last."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name!r} is of the dtype {dtype!r}, which is not read here")
    if not _counts(shape) or len(shape) > _DIMENSIONS or not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{name!r} has the shape {shape!r} and data_offsets {offsets!r}")
    kind, (start, end) = np.dtype(DTYPES[dtype]), offsets
    if prod(shape) * kind.itemsize != end - start:
        raise ValueError(f"{name!r} is {dtype} {shape}, and lies in bytes {start} to {end}")
    return kind, tuple(shape), start, end


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)
