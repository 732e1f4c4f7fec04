"""Room for a component's numbers: memory, or where they are too many, files that the system writes them out to."""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from edge.devices import detect
from edge.errors import CheckpointError
from edge.units import format_size

_SHARE = 0.5  # of the memory that is free, that one component may take: what is made of it, and torch, need the rest
_STAYS = 0.35  # of it, that a larger one takes: what is written of it is larger, too
_LARGE = 1 << 20  # bytes; a smaller tensor stays in memory


class Room:
    """For tensors of these shapes. Mapped files have lost their names already: they are gone with the last tensor. The
    first tensors stay in memory as far as they may: of files that are read in turns, one pass after the other, the
    system would keep none."""

    def __init__(self, shapes: Iterable[tuple[int, ...]], dtype: torch.dtype) -> None:
        """Raises CheckpointError where neither memory nor disk has room for them."""
        self._dtype = dtype
        total = sum(math.prod(shape) for shape in shapes) * dtype.itemsize
        memory, self._place = detect().memory_bytes, _place()
        self._stays = _STAYS * memory
        # A mapped file that outgrows its disk ends the process: there must be room for all of it, and some more.
        disk, needed = shutil.disk_usage(self._place).free, 1.1 * (total - self._stays)
        self.mapped = sys.platform != "win32" and total > _SHARE * memory and needed < disk
        if not self.mapped and total > memory:
            raise CheckpointError(
                f"a component takes {format_size(total)} of memory, and {format_size(memory)} are free; files "
                f"would take {format_size(round(needed))} of {self._place}, where {format_size(disk)} are free",
                hint="TMPDIR=FOLDER edge export …, of a disk with more room",
            )

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor, which is its caller's own, or its copy in a file."""
        size = tensor.numel() * self._dtype.itemsize
        if not self.mapped or size < _LARGE:
            return tensor
        if size <= self._stays:
            self._stays -= size
            return tensor
        with tempfile.NamedTemporaryFile(prefix="edge-vlm-", dir=self._place) as file:
            kept = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=self._dtype)
        return kept.view(tensor.shape).copy_(tensor)


def _place() -> Path:
    """`TMPDIR`, or else /var/tmp: that is on a disk where /tmp is in memory (file-hierarchy(7))."""
    large = Path("/var/tmp")
    if "TMPDIR" in os.environ or not os.access(large, os.W_OK):
        return Path(tempfile.gettempdir())
    return large
