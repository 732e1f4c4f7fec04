"""Frames between a command and its isolated child: four bytes of length, big-endian, then one JSON object in UTF-8."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

MOST = 1 << 20  # bytes of a frame; an answer with its token ids is the largest
_LENGTH = struct.Struct(">I")


def write(stream: BinaryIO, message: Mapping[str, Any]) -> None:
    """Raises OSError where nobody reads any more."""
    content = json.dumps(message).encode()
    stream.write(_LENGTH.pack(len(content)) + content)
    stream.flush()


def read(stream: BinaryIO) -> bytes | None:
    """The content of the next one; None at the end. Raises ValueError on what is none, before it takes memory."""
    head = stream.read(_LENGTH.size)
    if not head:
        return None
    length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
    if not 0 < length <= MOST:
        raise ValueError(f"a frame of {length:,} bytes")
    content = stream.read(length)
    if len(content) != length:
        raise ValueError(f"a frame of {length:,} bytes ends after {len(content):,}")
    return content


def parse(content: bytes) -> dict[str, Any]:
    """Raises ValueError on what is no object."""
    try:
        message = json.loads(content)
    except RecursionError as error:
        raise ValueError("a frame is nested too deep") from error
    if not isinstance(message, dict):
        raise ValueError("a frame holds no object")
    return message
