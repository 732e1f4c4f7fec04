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
_LARGE = 1 << 20  # bytes; a smaller tensor stays in memory


class Room:
    """For tensors of these shapes. Mapped files have lost their names already: they are gone with the last tensor."""

    def __init__(self, shapes: Iterable[tuple[int, ...]], dtype: torch.dtype) -> None:
        self._dtype = dtype
        total = sum(math.prod(shape) for shape in shapes) * dtype.itemsize
        here = Path(tempfile.gettempdir())
        # A mapped file that outgrows its disk ends the process: there must be room for all of it, and some more.
        room = 1.1 * total < shutil.disk_usage(here).free
        self.mapped = sys.platform != "win32" and total > _SHARE * detect().memory_bytes and room

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor, which is its caller's own, or its copy in a file."""
        if not self.mapped or tensor.numel() * self._dtype.itemsize < _LARGE:
            return tensor
        with tempfile.NamedTemporaryFile(prefix="edge-vlm-") as file:
            kept = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=self._dtype)
        return kept.view(tensor.shape).copy_(tensor)
