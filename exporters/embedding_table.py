"""The embedding table beside a decoder's graph, to be memory-mapped: a prompt touches few of its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from edge.table import SCALES, TABLE
from exporters import quantize


def write(table: Tensor, scheme: str, folder: Path) -> tuple[Path, ...]:
    """As `edge.table` reads it: fp32 or fp16 where the scheme says so, else int8. Afterwards `table` holds what was
    stored."""
    rows = folder / TABLE
    if scheme in ("fp32", "fp16"):
        stored = table.half() if scheme == "fp16" else table
        np.save(rows, stored.numpy())
        table.copy_(stored)
        return (rows,)
    scales = folder / SCALES
    if table.shape[1] % quantize.BLOCK:
        row = quantize.per_channel(table)
        values, shares, stored = row.values, row.scales[:, None], row.dequantized()
    else:
        packed = quantize.blockwise(table, bits=8)
        values, shares, stored = packed.values.flatten(1), packed.scales, packed.dequantized()
    np.save(rows, values.numpy())
    np.save(scales, shares.numpy())
    table.copy_(stored)
    return rows, scales
