"""The embedding table beside a decoder's graph, to be memory-mapped: a prompt touches few of its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from edge.decoders.embedding_table import SCALES, TABLE
from exporters.quantization import integers

# int8 has a scale for each block of a row, or for each row where blocks do not divide it; int8_rows always the latter.
Kind = Literal["fp32", "fp16", "int8", "int8_rows"]


def write(table: Tensor, kind: Kind, folder: Path) -> tuple[Path, ...]:
    """As `edge.decoders.embedding_table` reads it. Afterwards `table` holds what was stored."""
    rows, shares, stored = packed(table, kind)
    np.save(folder / TABLE, rows.numpy())
    table.copy_(stored)
    if shares is None:
        return (folder / TABLE,)
    np.save(folder / SCALES, shares.numpy())
    return folder / TABLE, folder / SCALES


def packed(table: Tensor, kind: Kind) -> tuple[Tensor, Tensor | None, Tensor]:
    """Rows, their scales if they are int8, and what both stand for. table f32 [vocab, hidden], scales f32 [vocab,
    blocks]."""
    if kind in ("fp32", "fp16"):
        stored = table.half() if kind == "fp16" else table
        return stored, None, stored
    if kind == "int8_rows" or table.shape[1] % integers.BLOCK:
        row = integers.per_channel(table)
        return row.values, row.scales[:, None], row.dequantized()
    found = integers.blockwise(table, bits=8)
    return found.values.flatten(1), found.scales, found.dequantized()
