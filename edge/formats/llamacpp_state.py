"""State of one sequence, as llama.cpp writes it: checked before native code reads it.

Little-endian: a magic number, the sequence; then a cache, or two where some layers see a window of positions: how many
streams, how many cells; of each cell its position, how many sequences share it, and which; whether values lie
transposed, how many layers; of each layer the keys' type and bytes of a row, then the rows; of each layer the same of
the values, or, transposed, their type, bytes of a number and numbers of a row, then the numbers.
"""

from __future__ import annotations

import numpy as np

from edge.errors import EngineError
from edge.types import Array

_TYPES = {"f16": (1, 1, 2), "q8_0": (8, 32, 34)}  # ggml's number, and a block's numbers and bytes
_MAGIC = 0xAF143CD8
_HEAD = 16  # bytes of a cache before and behind its cells
_CELL = np.dtype([("position", "<i4"), ("sequences", "<u4"), ("sequence", "<i4")])
_KEYS = np.dtype([("type", "<i4"), ("row", "<u8")])
_TRANSPOSED = np.dtype([("type", "<i4"), ("item", "<u4"), ("width", "<u4")])


def require_state(state: Array, positions: int, layers: int, width: int, kind: str) -> None:
    """`state` u8 [bytes] is that of sequence 0, which holds `positions` of a decoder with `layers` of `width` numbers
    (kv_heads * head_dim), stored as `kind`. Raises EngineError on anything else: another version may write otherwise,
    and the library trusts the positions that it reads."""
    try:
        known = _is_state(np.ascontiguousarray(state), positions, layers, width, kind)
    except ValueError:  # a buffer that ends too early
        known = False
    if not known:
        raise EngineError(f"no state of llama.cpp for {positions} positions of {layers} layers in {kind}")


def _is_state(state: Array, positions: int, layers: int, width: int, kind: str) -> bool:
    if np.frombuffer(state, "<u4", 2).tolist() != [_MAGIC, 0]:
        return False
    at, found = 8, 0
    while found < layers:
        own = _layers(state, at, positions)
        end = own and _cache_end(state, at + _HEAD + positions * _CELL.itemsize, positions, own, width, kind)
        if not end:
            return False
        at, found = end, found + own
    return found == layers and at == len(state)


def _layers(state: Array, at: int, positions: int) -> int:
    """Of the cache that begins at `at`; 0: it is none that holds these positions."""
    if np.frombuffer(state, "<u4", 2, at).tolist() != [1, positions]:
        return 0
    cells = np.frombuffer(state, _CELL, positions, at + 8)
    if (cells["sequences"] != 1).any() or cells["sequence"].any():
        return 0
    if not np.array_equal(np.sort(cells["position"]), np.arange(positions)):
        return 0
    transposed, count = np.frombuffer(state, "<u4", 2, at + 8 + cells.nbytes).tolist()
    return int(count) if transposed <= 1 else 0


def _cache_end(state: Array, at: int, positions: int, layers: int, width: int, kind: str) -> int:
    """Where the keys and values from `at` on end; 0: they are not so many, or of another kind or width."""
    number, block, size = _TYPES[kind]
    if width % block or layers * positions > len(state):
        return 0
    row, transposed = width // block * size, int(np.frombuffer(state, "<u4", 1, at - 8)[0])
    for values in (False, True):
        head = _TRANSPOSED if values and transposed else _KEYS
        expected = (number, size, width) if values and transposed else (number, row)
        for _ in range(layers):
            if np.frombuffer(state, head, 1, at)[0].item() != expected:
                return 0
            at += head.itemsize + positions * row
    return at
