"""Arrays in .npy files, mapped from disk."""

from __future__ import annotations

import os
import tokenize
from math import prod
from pathlib import Path

import numpy as np

from edge.errors import BundleError
from edge.types import Array

# NumPy reads the head as Python's source: what it raises of a damaged one is what its own tokeniser and parser do.
DAMAGE = (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError, TypeError, LookupError, ArithmeticError,
          RecursionError, MemoryError)  # fmt: skip
_NUMBERS = "iuf"  # kinds of dtypes


def mapped(path: Path) -> Array:
    """The array of a file; nothing of it is read before it is asked for. Raises BundleError on one that is damaged, or
    holds no numbers."""
    try:
        with path.open("rb") as file:
            heads = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, columns, kind = heads[np.lib.format.read_magic(file)](file)
            start, size = file.tell(), os.fstat(file.fileno()).st_size
        # NumPy divides by the width of what it maps: that of an empty text ends the process.
        if kind.kind not in _NUMBERS or columns:
            raise ValueError(f"it holds {kind}")
        if min(shape, default=1) < 1 or prod(shape) * kind.itemsize != size - start:
            raise ValueError(f"it has {size - start} bytes for {kind} {list(shape)}")
        # A plain view of the mapping: the memmap class is slow to index.
        return np.asarray(np.memmap(path, kind, "r", start, shape))
    except DAMAGE as error:
        raise BundleError(f"{path.name} is damaged: {error}", hint=f"edge verify {path.parent}") from error
