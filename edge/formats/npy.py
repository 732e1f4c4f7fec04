"""Arrays in .npy files, mapped from disk."""

from __future__ import annotations

import tokenize
from pathlib import Path

import numpy as np

from edge.errors import BundleError
from edge.types import Array

# NumPy reads the head as Python's source: what it raises of a damaged one is what its own tokeniser and parser do.
DAMAGE = (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError, TypeError, LookupError, ArithmeticError,
          RecursionError, MemoryError)  # fmt: skip


def mapped(path: Path) -> Array:
    """The array of a file; nothing of it is read before it is asked for. Raises BundleError on one that is damaged, or
    holds no numbers."""
    try:
        # A plain view of the mapping: the memmap class is slow to index.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except DAMAGE as error:
        raise BundleError(f"{path.name} is damaged: {error}", hint=f"edge verify {path.parent}") from error
