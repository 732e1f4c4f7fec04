"""Whether a tokenizer.json is one that the library survives: what it would loop over, or die of, is refused.

The library runs what the file says: a normaliser that doubles a letter forty times takes all memory, and a damaged
character map ends the process.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 1 << 27  # of the file; the largest that is published has 34 MB
_DEEPEST, _MOST_STEPS = 8, 64  # of normalisers, one in another and one after another
_GROWTH = 16  # how many times longer a text may become
_LONGEST = 256  # bytes that stand for a few letters
_NORMALIZERS = {
    *("BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend"),
    *("Replace", "Sequence", "Strip", "StripAccents"),
}

Units = NDArray[np.int64]


def check(path: Path) -> str:
    """Raises ValueError, which says why, and OSError. What it gives is always the same."""
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"it has {size:,} bytes, at most {MOST_BYTES:,} are read")
    try:
        told = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(told, dict):
        raise ValueError("it is no JSON object")
    steps = list(_steps(told.get("normalizer"), 0))
    if len(steps) > _MOST_STEPS:
        raise ValueError(f"it normalises in {len(steps)} steps, at most {_MOST_STEPS} are read")
    growth = 1.0
    for step in steps:
        growth *= _growth(step)
    if growth > _GROWTH:
        raise ValueError(f"its normalisers make a text up to {growth:.2g} times as long, at most {_GROWTH} are read")
    return "sound"


def _steps(told: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    if told is None:
        return
    if depth > _DEEPEST or not isinstance(told, dict) or str(told.get("type")) not in _NORMALIZERS:
        raise ValueError(f"its normaliser {str(told)[:60]!r} is of no kind that is read")
    if told["type"] != "Sequence":
        yield told
        return
    inner = told.get("normalizers")
    if not isinstance(inner, list):
        raise ValueError("its sequence of normalisers is no list")
    for step in inner:
        yield from _steps(step, depth + 1)


def _growth(step: Mapping[str, Any]) -> float:
    """How many times longer a step makes a text of some length, but for what it puts there once."""
    if step["type"] == "Precompiled":
        _check_map(step.get("precompiled_charsmap"))
    if step["type"] == "Prepend" and len(str(step.get("prepend"))) > _LONGEST:
        raise ValueError(f"it puts more than {_LONGEST} letters before a text")
    if step["type"] != "Replace":
        return 1
    pattern, content = step.get("pattern"), step.get("content")
    if not isinstance(pattern, dict) or not isinstance(content, str):
        raise ValueError("it replaces what is no text")
    if isinstance(found := pattern.get("String"), str) and found:
        return max(1, len(content) / len(found))
    anchored = re.match(r"\\A|\^", str(pattern.get("Regex"))) or len(content) == 0
    if len(content) > _LONGEST:
        raise ValueError(f"it puts {len(content)} letters for a pattern")
    return 1 if anchored else 1 + len(content)  # it may match nothing, between any two letters


def _check_map(told: Any) -> None:
    """A map of characters as SentencePiece compiles it: the bytes of a double array, which is a tree of prefixes with
    32 bits a node, and the texts that its leaves refer to (Aoe's double arrays, as darts-clone lays them out)."""
    try:
        content = base64.b64decode(told, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise ValueError("its character map is no base64") from None
    size = int.from_bytes(content[:4], "little")
    if size < 4 or size % 4 or size > len(content) - 4:
        raise ValueError(f"its character map has a tree of {size} bytes, and {len(content)} in all")
    units = np.frombuffer(content[4 : 4 + size], "<u4").astype(np.int64)
    texts = content[4 + size :]
    longest = max(map(len, texts.split(b"\0")))
    if longest > _LONGEST:
        raise ValueError(f"its character map puts {longest} bytes for a letter")
    try:
        texts.decode()
    except UnicodeDecodeError:
        raise ValueError("its character map has texts that are none") from None
    for value in _leaves(units).tolist():
        if value > len(texts) or (value < len(texts) and 0x80 <= texts[value] < 0xC0):
            raise ValueError(f"its character map refers to byte {value} of {len(texts)}")


def _leaves(units: Units) -> Units:
    """What all leaves refer to. Raises ValueError where a branch leaves the tree."""
    nodes, values, seen = np.zeros(1, np.int64), [], np.zeros(len(units), bool)
    letters = np.arange(1, 256)
    while len(nodes):
        seen[nodes] = True
        unit = units[nodes]
        begin = nodes ^ ((unit >> 10) << ((unit & (1 << 9)) >> 6))  # of a node's children
        ends = (unit >> 8) & 1 == 1
        if np.any((begin | 255) >= len(units)):
            raise ValueError("its character map has a branch that leaves it")
        values.append(units[begin[ends]] & ((1 << 31) - 1))
        children = begin[:, None] ^ letters
        nodes = np.unique(children[units[children] & ((1 << 31) | 255) == letters])
        nodes = nodes[~seen[nodes]]
    return np.concatenate(values)
