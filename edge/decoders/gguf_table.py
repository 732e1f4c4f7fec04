"""Embedding table of a GGUF file (`token_embd.weight`), read where it lies; its blocks are unpacked by the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.formats.gguf import GGUF
from edge.types import Array

Unpack = Callable[[Any, Any, int], object]  # from where, to where in float32, how many numbers


class GGUFTable:
    def __init__(self, file: GGUF, unpack: Callable[[str], Unpack]) -> None:
        """`unpack`: what unpacks blocks of a kind, such as Q4_0; it may raise."""
        tensor = file.tensors["token_embd.weight"]
        self.hidden, self.vocab = tensor.shape
        self._kind = tensor.kind
        shape = self.vocab, tensor.bytes // self.vocab
        self._stored = np.memmap(file.path, np.uint8, "r", offset=tensor.offset, shape=shape)
        self._unpack = unpack(tensor.kind) if tensor.blocks else None

    def gather(self, ids: Sequence[int], out: NDArray[np.float32]) -> None:
        """See `edge.decoders.base.Lookup`."""
        stored: Array = self._stored[list(ids)]
        if self._unpack is not None:
            self._unpack(stored.ctypes.data, out.ctypes.data, out.size)
        elif self._kind == "BF16":
            out[:] = (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            out[:] = stored.view(np.float32 if self._kind == "F32" else np.float16)
