"""States of a sequence as llama.cpp writes them, made from the definition in its sources."""

from __future__ import annotations

import struct

import numpy as np

from edge.types import Array

LAYERS, WIDTH = 2, 32
ROWS = {"f16": (1, 2, 64), "q8_0": (8, 34, 34)}  # ggml's number, bytes of a block, bytes of a row


def state(
    positions: list[int],
    kind: str = "f16",
    *,
    transposed: bool = False,
    magic: int = 0xAF143CD8,
    sequence: int = 0,
    shared: int = 1,
    layers: int = LAYERS,
    row: int | None = None,
    width: int = WIDTH,
    caches: int = 1,
) -> Array:
    number, size, real = ROWS[kind]
    made = struct.pack("<II", 1, len(positions))
    made += b"".join(struct.pack("<iIi", position, shared, sequence) for position in positions)
    made += struct.pack("<II", transposed, layers)
    numbers = bytes(len(positions) * real)
    made += (struct.pack("<iQ", number, row or real) + numbers) * layers
    values = struct.pack("<iII", number, size, width) if transposed else struct.pack("<iQ", number, row or real)
    made += (values + numbers) * layers
    return np.frombuffer(struct.pack("<Ii", magic, 0) + made * caches, np.uint8)
