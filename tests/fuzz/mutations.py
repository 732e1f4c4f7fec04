"""Mutations of bytes, and of JSON as JSON: what a reader meets that no exporter writes."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1)
_TEXTS = ("", "x" * 5000, "../../etc/passwd", "\x00\x1b[2J\ud800")
_VALUES = (None, True, -1, 0, 2**31, 2**63, 1e308, -1e308, *_TEXTS, [], {}, [[]])
_MOST = 1 << 20  # bytes of what is made


def mutated(
    content: bytes,
    others: Sequence[bytes],
    random: Random,
    structure: Callable[[bytes, Random], bytes] | None = None,
) -> bytes:
    """The content with one to four changes; one in two of JSON's are JSON still, and one in two is changed as its
    format has it, where there is a `structure` for that."""
    if structure is not None and random.random() < 0.5:
        return structure(content, random)[:_MOST]
    if content[:1] in b"{[" and random.random() < 0.5:
        found = changed_json(content, random)
        if found is not None and len(found) <= _MOST:  # lists in lists double each time
            return found
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        random.choice(_CHANGES)(data, others, random)
    return bytes(data[:_MOST])


def _place(data: bytearray, random: Random) -> int:
    """One in two near the front, where lengths and tables stand."""
    return random.randrange(min(len(data), 512) if random.random() < 0.5 else len(data)) if data else 0


def _flip(data: bytearray, _: Sequence[bytes], random: Random) -> None:
    if data:
        data[_place(data, random)] ^= 1 << random.randrange(8)


def _number(data: bytearray, _: Sequence[bytes], random: Random) -> None:
    kind, mask = random.choice((("<B", 0xFF), ("<H", 0xFFFF), ("<I", 2**32 - 1), ("<Q", 2**64 - 1)))
    size = struct.calcsize(kind)
    value = random.choice((*NUMBERS, len(data), len(data) - 1, len(data) + 1, random.getrandbits(64)))
    place = _place(data, random) // size * size
    data[place : place + size] = struct.pack(kind, value & mask)


def _step(data: bytearray, _: Sequence[bytes], random: Random) -> None:
    if data:
        place = _place(data, random)
        data[place] = (data[place] + random.choice((-1, 1))) % 256


def _cut(data: bytearray, _: Sequence[bytes], random: Random) -> None:
    del data[_place(data, random) :]


def _without(data: bytearray, _: Sequence[bytes], random: Random) -> None:
    place = _place(data, random)
    del data[place : place + random.choice((1, 2, 4, 8, 64, 4096))]


def _twice(data: bytearray, _: Sequence[bytes], random: Random) -> None:
    place, size = _place(data, random), random.choice((1, 4, 8, 64, 4096))
    data[place:place] = data[place : place + size] * random.choice((1, 1, 16))


def _noise(data: bytearray, _: Sequence[bytes], random: Random) -> None:
    place = _place(data, random)
    size = random.choice((1, 4, 16, 64))
    data[place : place + size] = random.randbytes(size)


def _spliced(data: bytearray, others: Sequence[bytes], random: Random) -> None:
    other = random.choice(others)
    place, start = _place(data, random), random.randrange(len(other)) if other else 0
    data[place : place + 256] = other[start : start + 256]


Change = Callable[[bytearray, Sequence[bytes], Random], None]
_CHANGES: tuple[Change, ...] = (_flip, _number, _number, _step, _cut, _without, _twice, _noise, _spliced)


def changed_json(content: bytes, random: Random) -> bytes | None:
    """With one value, key or list changed; None of what is no JSON."""
    try:
        root = json.loads(content)
    except (ValueError, RecursionError):
        return None
    places = list(_places(root))
    if not places:
        return None
    for _ in range(random.choice((1, 1, 2, 3))):
        inside, key = random.choice(places)
        try:
            _change(inside, key, random)
        except (KeyError, IndexError):  # another change took it away
            continue
    return json.dumps(root).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:200]:
        yield value, key
        yield from _places(inner)


def _change(inside: Any, key: Any, random: Random) -> None:
    before, way = inside[key], random.randrange(6)
    if way == 0:
        del inside[key]
    elif way == 1:
        inside[key] = random.choice(_VALUES)
    elif way == 2 and isinstance(before, int | float) and not isinstance(before, bool):
        inside[key] = random.choice((*NUMBERS, -before, before + 1, before * 2, 0.5))
    elif way == 3:
        inside[key] = [before] * random.choice((1, 2, 300))
    elif way == 4 and isinstance(inside, dict):
        inside[f"{key}?"] = inside.pop(key)
    else:
        inside[key] = nested(before, random.choice((1, 5, 200)))


def nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = {"type": value}
    return value
