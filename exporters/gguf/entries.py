"""Tensors on their way into a GGUF file, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

import edge
from exporters.gguf import packing
from exporters.sources.checkpoint import Checkpoint


@dataclass(frozen=True)
class Entry:
    """A tensor under ggml's name: a view of a module's parameter, float32."""

    name: str
    tensor: Tensor
    heads: int = 0  # above 0: the rows are those of so many rotary heads
    importance: Tensor | None = None  # of each column
    first: int = 0  # the row that is stored first; those before it come last
    scales: Tensor | None = None  # of the 4-bit blocks of each row, where the tensor is rounded already

    def stored(self) -> Tensor:
        return self.ordered(self.tensor)

    def ordered(self, tensor: Tensor) -> Tensor:
        """The tensor, or what has a row for each of its rows, as ggml's Llama wants it, which rotates neighbours where
        checkpoints rotate halves of a head."""
        if self.first:
            return tensor.roll(-self.first, 0)
        if not self.heads:
            return tensor
        return tensor.unflatten(0, (self.heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)

    def take(self, stored: Tensor) -> None:
        """Put what was stored back into the module."""
        self.tensor.copy_(halved(stored.reshape(self.tensor.shape), self.heads).roll(self.first, 0))


def halved(stored: Tensor, heads: int) -> Tensor:
    """Rows of rotary heads as checkpoints have them, from ggml's order."""
    return stored.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(stored.shape) if heads else stored


def new_file(path: Path, architecture: str, checkpoint: Checkpoint, file_type: gguf.LlamaFileType) -> gguf.GGUFWriter:
    """A writer that has the general metadata."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(checkpoint.name)
    writer.add_license(checkpoint.license)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string("edge_vlm.version", edge.__version__)
    writer.add_string("edge_vlm.source.sha256", checkpoint.sha256)
    return writer


def write(
    writer: gguf.GGUFWriter,
    entries: Sequence[Entry],
    kind: Callable[[Entry], Kind],
    progress: Callable[[float], None],
) -> None:
    """Metadata, names and shapes, then one tensor after the other: no more than one is packed in memory."""
    kinds = [packing.fitting(kind(entry), tuple(entry.tensor.shape)) for entry in entries]
    for entry, stored in zip(entries, kinds, strict=True):
        block, size = gguf.GGML_QUANT_SIZES[stored]
        numbers = entry.tensor.numel()
        shape = tuple(entry.tensor.shape)
        writer.add_tensor_info(entry.name, shape, np.dtype(np.float32), numbers // block * size, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total, done = sum(entry.tensor.numel() for entry in entries), 0
    for entry, stored in zip(entries, kinds, strict=True):
        scales = None if entry.scales is None else entry.ordered(entry.scales)
        writer.write_tensor_data(packing.pack(entry.stored(), stored, entry.importance, scales))
        done += entry.tensor.numel()
        progress(done / total)
    writer.close()


@torch.no_grad()
def read_back(path: Path, entries: Sequence[Entry]) -> None:
    """Afterwards the module that the entries are views of computes what the file says."""
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert found.keys() == {entry.name for entry in entries}
    for entry in entries:
        tensor = found[entry.name]
        assert math.prod(map(int, tensor.shape)) == entry.tensor.numel()
        entry.take(torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)))
