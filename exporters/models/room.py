"""Room for a component's numbers: memory, or where they are too many, files that the system writes them out to."""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from edge.devices import detect

_SHARE = 0.5  # of the memory that is free, that one component may take: what is made of it, and torch, need the rest
_STAYS = 0.35  # of it, that a larger one takes: what is written of it is larger, too
_LARGE = 1 << 20  # bytes; a smaller tensor stays in memory


class Room:
    """For tensors of these shapes. Mapped files have lost their names already: they are gone with the last tensor. The
    first tensors stay in memory as far as they may: of files that are read in turns, one pass after the other, the
    system would keep none."""

    def __init__(self, shapes: Iterable[tuple[int, ...]], dtype: torch.dtype) -> None:
        self._dtype = dtype
        total = sum(math.prod(shape) for shape in shapes) * dtype.itemsize
        here = Path(tempfile.gettempdir())
        # A mapped file that outgrows its disk ends the process: there must be room for all of it, and some more.
        room = 1.1 * total < shutil.disk_usage(here).free
        free = detect().memory_bytes
        self.mapped = sys.platform != "win32" and total > _SHARE * free and room
        self._stays = _STAYS * free

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor, which is its caller's own, or its copy in a file."""
        size = tensor.numel() * self._dtype.itemsize
        if not self.mapped or size < _LARGE:
            return tensor
        if size <= self._stays:
            self._stays -= size
            return tensor
        with tempfile.NamedTemporaryFile(prefix="edge-vlm-") as file:
            kept = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=self._dtype)
        return kept.view(tensor.shape).copy_(tensor)
