"""An importance matrix as a file, in llama.cpp's own layout: what is measured here serves there, and the reverse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from edge.errors import UsageError
from exporters.models.decoders import DecoderConfig

SUMS, COUNTS = ".in_sum2", ".counts"


def write(path: Path, importance: Mapping[str, Tensor], config: DecoderConfig, conversations: int) -> None:
    """`importance` (`exporters.quantization.importance`) by the module's names."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["pictures and questions"])
    writer.add_uint32("imatrix.chunk_count", conversations)
    writer.add_uint32("imatrix.chunk_size", config.context)
    for ours, theirs, _ in _names(config):
        for name in theirs:
            writer.add_tensor(name + SUMS, importance[ours].numpy()[None])
            writer.add_tensor(name + COUNTS, np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path, config: DecoderConfig) -> dict[str, Tensor]:
    """By the module's names; what the file lacks is missing. Raises UsageError when it is none, or another model's."""
    found: dict[str, Tensor] = {}
    try:
        stored = {t.name: np.array(t.data, np.float32).ravel() for t in gguf.GGUFReader(path).tensors}
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError) as error:
        raise UsageError(
            f"{path} is no importance matrix: {error}",
            hint="llama-imatrix --in-file OLD -o NEW.gguf turns an old one into the layout that is read",
        ) from error
    if spoilt := [name for name, numbers in stored.items() if not np.isfinite(numbers).all()]:
        raise UsageError(
            f"{path} holds NaN or infinity, which would spoil the rounding it guides: {', '.join(spoilt[:8])}"
            + (f" and {len(spoilt) - 8} more" if len(spoilt) > 8 else ""),
            hint="measure it anew: --calib DIR",
        )
    for ours, theirs, columns in _names(config):
        if (sums := stored.get(theirs[0] + SUMS)) is None:
            continue
        counts = stored.get(theirs[0] + COUNTS, np.ones(1, np.float32))
        if sums.size != columns or not counts.size or counts[0] < 1 or (sums < 0).any():
            raise UsageError(
                f"{path} is the importance matrix of another model: {theirs[0]} has {sums.size} columns, not {columns}",
                hint="measure it anew: --calib DIR",
            )
        found[ours] = torch.from_numpy(sums / counts[0])
    if not found:
        raise UsageError(f"{path} names no weight of this model", hint="measure it anew: --calib DIR")
    return found


def _names(c: DecoderConfig) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Our name, llama.cpp's for what is one product here, and the columns."""
    for i in range(c.layers):
        qkv = tuple(f"blk.{i}.attn_{kind}.weight" for kind in "qkv")
        yield f"layers.{i}.qkv_proj.weight", qkv, c.hidden
        yield f"layers.{i}.o_proj.weight", (f"blk.{i}.attn_output.weight",), c.heads * c.head_dim
        yield f"layers.{i}.gate_up_proj.weight", (f"blk.{i}.ffn_gate.weight", f"blk.{i}.ffn_up.weight"), c.hidden
        yield f"layers.{i}.down_proj.weight", (f"blk.{i}.ffn_down.weight",), c.ffn
    yield "lm_head.weight", ("output.weight",), c.hidden
