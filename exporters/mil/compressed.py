"""Operations of MIL that make numbers of compressed constants: scaled integers, palettes, sparse arrays."""

from __future__ import annotations

import torch
from torch import Tensor

from edge.errors import EngineError


def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """scale * (data - offset), one scale and offset for each block; float32, to be rounded to the scales' type."""
    blocks = _blocks(tuple(data.shape), tuple(scale.shape), "scale")
    cut = data.float().view(blocks)
    among = [size for n in scale.shape for size in (n, 1)]
    if offset is not None:
        cut = cut - offset.float().view(among)
    return (cut * scale.float().view(among)).view(data.shape)


def constexpr_lut_to_dense(indices: Tensor, lut: Tensor, vector_axis: Tensor | None = None) -> Tensor:
    """Each index stands for an entry of its block's table; lut `[..., entries, 1]`."""
    if lut.shape[-1] != 1:
        raise EngineError("palettes of vectors are not known")
    groups, entries = tuple(lut.shape[:-2]), lut.shape[-2]
    if int(indices.max()) >= entries:
        raise EngineError(f"an index of {int(indices.max())} into a palette of {entries}")
    blocks = _blocks(tuple(indices.shape), groups, "lut")
    among = [size for n in groups for size in (n, 1)]
    # The tables lie one behind the other: where a block's own begins is added to its indices.
    starts = torch.arange(lut.numel() // entries).view(among) * entries
    return lut.reshape(-1)[(indices.view(blocks).long() + starts).view(-1)].view(indices.shape).float()


def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor) -> Tensor:
    if int(mask.sum()) != nonzero_data.numel():
        raise EngineError(f"a sparse constant of {nonzero_data.numel()} numbers for {int(mask.sum())} places")
    dense = torch.zeros(mask.shape)
    dense[mask.bool()] = nonzero_data.float()
    return dense


def _blocks(shape: tuple[int, ...], counts: tuple[int, ...], what: str) -> list[int]:
    """Each axis as (blocks, size of a block)."""
    if len(shape) != len(counts) or any(n < 1 or size % n for size, n in zip(shape, counts, strict=True)):
        raise EngineError(f"a {what} of {list(counts)} does not divide {list(shape)}")
    return [size for whole, n in zip(shape, counts, strict=True) for size in (n, whole // n)]


TABLE = {
    function.__name__: function
    for function in (constexpr_blockwise_shift_scale, constexpr_lut_to_dense, constexpr_sparse_to_dense)
}
