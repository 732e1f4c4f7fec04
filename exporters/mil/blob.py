"""Core ML's weight file (MIL blob storage, version 2): a head, then for each array a record of where it lies.

Layout from coremltools' sources (mlmodel/src/MILBlob/Blob/StorageFormat.hpp), all little-endian. Read by us, because
the library trusts the numbers that it finds.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np

from edge.errors import BundleError
from edge.types import Array

VERSION = 2
_HEAD = struct.Struct("<II56x")  # count, version
_RECORD = struct.Struct("<IIQQQ32x")  # sentinel, type, bytes, offset, unused bits at the end
_SENTINEL = 0xDEADBEEF
# Number -> (NumPy type, bits of one number)
_KINDS = {
    1: ("<f2", 16),
    2: ("<f4", 32),
    3: ("u1", 8),
    4: ("i1", 8),
    6: ("<i2", 16),
    7: ("<u2", 16),
    8: ("i1", 4),
    9: ("u1", 1),
    10: ("u1", 2),
    11: ("u1", 4),
    12: ("u1", 3),
    13: ("u1", 6),
    14: ("<i4", 32),
    15: ("<u4", 32),
}


class Blob:
    """Raises BundleError on a file that is none, and on a record that lies or points outside."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants what it could write to
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise self._damaged(f"it cannot be read: {error}") from error
        if len(self._data) < _HEAD.size:
            raise self._damaged(f"it has {len(self._data)} bytes")
        _, version = _HEAD.unpack_from(self._data)
        if version != VERSION:
            raise self._damaged(f"version {version}, expected {VERSION}")

    def array(self, offset: int, dtype: str, bits: int, shape: tuple[int, ...]) -> Array:
        """The numbers at a record: `dtype` as NumPy spells it, `bits` of each; sub-byte ones come as bytes."""
        if offset + _RECORD.size > len(self._data):
            raise self._damaged(f"a record at {offset} lies outside it")
        sentinel, kind, size, start, unused = _RECORD.unpack_from(self._data, offset)
        count = int(np.prod(shape, dtype=object)) if shape else 1
        if sentinel != _SENTINEL or kind not in _KINDS or _KINDS[kind] != (dtype, bits):
            raise self._damaged(f"at {offset} is no record of {bits}-bit {dtype}")
        if size * 8 - unused != count * bits or unused >= 8 or start + size > len(self._data):
            raise self._damaged(f"the record at {offset} has {size} bytes at {start}, expected {count} of {bits} bits")
        if bits % 8 == 0:
            return np.frombuffer(self._data, dtype, count, start).reshape(shape)
        packed = np.frombuffer(self._data, np.uint8, size, start)
        return _unpacked(packed, bits, count, signed=dtype == "i1").reshape(shape)

    def _damaged(self, why: str) -> BundleError:
        return BundleError(f"{self._path.name} is no sound weight file: {why}", hint="copy or export the bundle again")


def _unpacked(packed: Array, bits: int, count: int, signed: bool) -> Array:
    """The lowest bits come first."""
    if bits == 4:
        flat = np.empty(2 * packed.size, np.uint8)
        np.bitwise_and(packed, 15, out=flat[0::2])
        np.right_shift(packed, 4, out=flat[1::2])
        flat = flat[:count]
    else:
        single = np.unpackbits(packed, bitorder="little")[: count * bits].reshape(count, bits)
        flat = (single << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    return (flat.view(np.int8) ^ 8) - np.int8(8) if signed else flat
