"""Reader of GGUF headers: settings, and where the tensors lie.

Such a file is handed to native code, which trusts much of it and ends the process on what it did not expect. So it is
read here first, and what is out of bounds is refused. No tensor's content is read, and of the lists only those that
are asked for.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from edge.errors import BundleError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_LETTERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SCALARS = {code: struct.Struct(f"<{letter}") for code, letter in _LETTERS.items()}
_STRING, _ARRAY = 8, 9
_U32, _U64 = _SCALARS[4], _SCALARS[10]
_MOST = 1 << 20  # entries of any list: a vocabulary is the longest there is
_MOST_ELEMENTS = 1 << 48
_LONGEST_NAME = 63  # of a tensor, in bytes
_LONGEST_TEXT = 1 << 24  # bytes of a setting; the longest there is, a chat template, has some thousand
# Number -> (name, numbers in a block, bytes of a block). Those that no weight is stored in are left out: nothing
# multiplies with them.
KINDS = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
PLAIN = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class GGUFArray:
    """A list among the settings; what it holds is read where `read` was asked to."""

    code: int  # of its entries' type
    count: int
    values: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class GGUFTensor:
    shape: tuple[int, ...]  # the innermost axis first, as the format has it
    kind: str
    offset: int  # from the start of the file
    bytes: int

    @property
    def blocks(self) -> bool:
        """Whether it is stored in blocks with a scale each, not as plain numbers."""
        return self.kind not in PLAIN


@dataclass(frozen=True)
class GGUF:
    path: Path
    version: int
    settings: Mapping[str, Any]  # str, bool, int, float or GGUFArray
    tensors: Mapping[str, GGUFTensor]
    places: Mapping[str, slice]  # of each setting, name and value, in the file
    data: int  # where the tensors begin

    @property
    def architecture(self) -> str:
        return str(self.settings["general.architecture"])


class _Damage(Exception):
    pass


def read(path: Path, lists: Collection[str] = ()) -> GGUF:
    """The values of the settings `lists` are read too. Raises BundleError on a file that is no GGUF, is cut, or counts,
    places or names what cannot be."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, lists).file(path)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise BundleError(f"cannot read {path.name}: {error}", hint="copy or export it again") from error
    except _Damage as damage:
        raise BundleError(f"{path.name} is no sound GGUF file: {damage}", hint="copy or export it again") from None


class _Reader:
    def __init__(self, data: mmap.mmap, lists: Collection[str]) -> None:
        self._data = data
        self._lists = lists
        self._size = len(data)
        self._at = 0

    def file(self, path: Path) -> GGUF:
        if self._size < 24 or self._data[:4] != MAGIC:
            raise _Damage(f"it begins with {self._data[:4]!r}, expected {MAGIC!r}")
        self._at = 4
        version = self._number(_U32)
        if version not in VERSIONS:
            raise _Damage(f"version {version}; known are {VERSIONS[0]} and {VERSIONS[1]}")
        tensors, settings = self._count("tensors", 24), self._count("settings", 13)
        found, places = self._settings(settings)
        alignment = _alignment(found)
        infos = self._infos(tensors, alignment)
        start = -(-self._at // alignment) * alignment
        listed = {name: self._placed(name, start, *info) for name, info in infos.items()}
        return GGUF(path, version, found, listed, places, start)

    def _settings(self, count: int) -> tuple[dict[str, Any], dict[str, slice]]:
        found: dict[str, Any] = {}
        places: dict[str, slice] = {}
        for _ in range(count):
            start = self._at
            key = self._text("a setting's name")
            if key in found:
                raise _Damage(f"{key!r} is set twice")
            found[key] = self._value(key)
            places[key] = slice(start, self._at)
        architecture = found.get("general.architecture")
        if not isinstance(architecture, str) or not re.fullmatch(r"[a-z0-9_.-]{1,64}", architecture):
            raise _Damage(f"its architecture is {architecture!r}")
        return found, places

    def _value(self, key: str) -> Any:
        code = self._number(_U32)
        if code == _STRING:
            return self._text(key)
        if code != _ARRAY:
            return self._number(self._scalar(key, code))
        code = self._number(_U32)
        count = self._count(f"entries of {key!r}", 8 if code == _STRING else self._scalar(key, code).size)
        if key in self._lists:
            return GGUFArray(code, count, self._values(key, code, count))
        if code == _STRING:
            self._skip_texts(count, key)
        else:
            self._skip(count * _SCALARS[code].size, key)
        return GGUFArray(code, count)

    def _values(self, key: str, code: int, count: int) -> tuple[Any, ...]:
        if code != _STRING:
            return tuple(self._number(_SCALARS[code]) for _ in range(count))
        last = self._at + _LONGEST_TEXT
        found = []
        for _ in range(count):
            found.append(self._text(key))
            if self._at > last:
                raise _Damage(f"{key} holds more than {_LONGEST_TEXT} bytes of text")
        return tuple(found)

    def _infos(self, count: int, alignment: int) -> dict[str, tuple[tuple[int, ...], tuple[str, int, int], int]]:
        """Shape, kind and relative place of each tensor."""
        found: dict[str, tuple[tuple[int, ...], tuple[str, int, int], int]] = {}
        for _ in range(count):
            name = self._text("a tensor's name")
            if name in found or not 1 <= len(name.encode()) <= _LONGEST_NAME:
                raise _Damage(f"a tensor is named {name!r}" + (" again" if name in found else ""))
            axes = self._number(_U32)
            if not 1 <= axes <= 4:
                raise _Damage(f"{name} has {axes} axes")
            shape = tuple(self._number(_U64) for _ in range(axes))
            code, offset = self._number(_U32), self._number(_U64)
            if code not in KINDS:
                raise _Damage(f"{name} is stored as number {code}, which is no kind of weight")
            if min(shape) < 1 or prod(shape) > _MOST_ELEMENTS or shape[0] % KINDS[code][1]:
                raise _Damage(f"{name} is {KINDS[code][0]} {list(shape)}")
            if offset % alignment:
                raise _Damage(f"{name} lies at {offset}, not a multiple of {alignment}")
            found[name] = shape, KINDS[code], offset
        return found

    def _placed(
        self, name: str, start: int, shape: tuple[int, ...], kind: tuple[str, int, int], offset: int
    ) -> GGUFTensor:
        size = prod(shape) // kind[1] * kind[2]
        if start + offset + size > self._size:
            raise _Damage(f"{name} ends at {start + offset + size}, and the file at {self._size}")
        return GGUFTensor(shape, kind[0], start + offset, size)

    def _number(self, kind: struct.Struct) -> Any:
        at = self._at
        self._skip(kind.size, "a number")
        return kind.unpack_from(self._data, at)[0]

    def _count(self, what: str, least: int) -> int:
        """How many there are, of at least `least` bytes each."""
        count: int = self._number(_U64)
        if count > _MOST or count * least > self._size - self._at:
            raise _Damage(f"{count} {what}")
        return count

    def _text(self, what: str) -> str:
        length = self._number(_U64)
        at = self._at
        self._skip(length, what)
        if length > _LONGEST_TEXT:
            raise _Damage(f"{what} is {length} bytes of text")
        try:
            return self._data[at : self._at].decode()
        except UnicodeDecodeError:
            raise _Damage(f"{what} is not text") from None

    def _skip(self, count: int, what: str) -> None:
        if count > self._size - self._at:
            raise _Damage(f"{what} goes on beyond its end")
        self._at += count

    def _skip_texts(self, count: int, what: str) -> None:
        unpack, data, at, last = _U64.unpack_from, self._data, self._at, self._size - 8
        for _ in range(count):
            if at > last:
                raise _Damage(f"{what} goes on beyond its end")
            at += 8 + unpack(data, at)[0]
        self._at = min(at, self._size)
        self._skip(at - self._at, what)

    def _scalar(self, key: str, code: int) -> struct.Struct:
        if code not in _SCALARS:
            raise _Damage(f"{key!r} is of type {code}")
        return _SCALARS[code]


def _alignment(settings: Mapping[str, Any]) -> int:
    alignment = settings.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise _Damage(f"an alignment of {alignment!r}")
    return alignment
