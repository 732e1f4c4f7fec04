"""Embedding table (`embed_tokens.npy`), mapped from disk; rows are gathered as they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.errors import BundleError
from edge.formats import npy
from edge.types import Array

TABLE = "embed_tokens.npy"  # f32 or f16 [vocab, hidden], or int8 with scales
SCALES = "embed_scales.npy"  # f32 [vocab, 1] or [vocab, hidden / block]


class EmbeddingTable:
    def __init__(self, table: Array, scales: Array | None) -> None:
        self._table = table
        self._scales = scales
        self.vocab, self.hidden = table.shape

    @classmethod
    def open(cls, files: Sequence[Path], vocab: int, hidden: int) -> EmbeddingTable:
        """Raises BundleError when the files of the part hold no such table."""
        by_name = {path.name: path for path in files}
        if TABLE not in by_name:
            raise BundleError(f"the decoder's part has no {TABLE}", hint="export the bundle again")
        table = npy.mapped(by_name[TABLE])
        if table.shape != (vocab, hidden) or table.dtype not in ("float32", "float16", "int8"):
            raise _damaged(by_name[TABLE], f"it is {table.dtype} {table.shape}, expected [{vocab}, {hidden}]")
        if table.dtype != "int8":
            return cls(table, None)
        if SCALES not in by_name:
            raise BundleError(f"{TABLE} is int8 and the decoder's part has no {SCALES}", hint="export the bundle again")
        scales = npy.mapped(by_name[SCALES])
        right = scales.dtype == "float32" and scales.ndim == 2 and len(scales) == vocab
        if not right or not scales.size or hidden % scales.shape[1]:
            raise _damaged(by_name[SCALES], f"it is {scales.dtype} {scales.shape}, for a table of [{vocab}, {hidden}]")
        return cls(table, scales)

    def gather(self, ids: Sequence[int], out: NDArray[np.float32]) -> None:
        """See `edge.decoders.base.Lookup`."""
        rows = self._table[list(ids)]
        if self._scales is None:
            out[:] = rows
        else:
            scales = self._scales[list(ids)]
            blocks = (*scales.shape, -1)
            np.multiply(rows.reshape(blocks), scales[..., None], out=out.reshape(blocks))


def _damaged(path: Path, why: str) -> BundleError:
    return BundleError(f"{path.name} is damaged: {why}", hint=f"edge verify {path.parent}")
