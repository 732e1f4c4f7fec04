"""Operations of MIL that move numbers and do not change them, whatever their type."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edge.errors import EngineError


def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """0 keeps an axis, -1 takes what is left."""
    wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(_ints(shape))]
    return x.reshape(wanted)


def transpose(x: Tensor, perm: Tensor) -> Tensor:
    return x.permute(_ints(perm))


def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(a % rank for a in _ints(axes)):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_ints(axes)))


def concat(values: Sequence[Tensor], axis: Tensor, interleave: Tensor | None = None) -> Tensor:
    if interleave is not None and bool(interleave):
        raise EngineError("concat that interleaves is not known")
    return torch.cat(list(values), dim=int(axis))


def split(
    x: Tensor, axis: Tensor, num_splits: Tensor | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    dim = int(axis)
    if split_sizes is not None:
        return torch.split(x, _ints(split_sizes), dim=dim)
    if num_splits is None or int(num_splits) < 1 or x.shape[dim] % int(num_splits):
        raise EngineError(f"split of {list(x.shape)} into {num_splits}")
    return torch.split(x, x.shape[dim] // int(num_splits), dim=dim)


def tile(x: Tensor, reps: Tensor) -> Tensor:
    return x.repeat(_ints(reps))


def identity(x: Tensor) -> Tensor:
    return x


def shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


def gather(
    x: Tensor,
    indices: Tensor,
    axis: Tensor | None = None,
    batch_dims: Tensor | None = None,
    validate_indices: Tensor | None = None,
) -> Tensor:
    if batch_dims is not None and int(batch_dims):
        raise EngineError("gather with batch_dims is not known")
    dim = 0 if axis is None else int(axis) % x.ndim
    found = x.index_select(dim, indices.reshape(-1).long() % max(1, x.shape[dim]))
    return found.reshape(*x.shape[:dim], *indices.shape, *x.shape[dim + 1 :])


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)


def equal(x: Tensor, y: Tensor) -> Tensor:
    return x == y


def slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    """A size of -1 goes to the end."""
    starts = [b % n if n else 0 for b, n in zip(_ints(begin), x.shape, strict=True)]
    ends = [n if s == -1 else b + s for b, s, n in zip(starts, _ints(size), x.shape, strict=True)]
    if any(not 0 <= end <= n for end, n in zip(ends, x.shape, strict=True)):
        raise EngineError(f"a slice of {_ints(size)} from {starts} lies outside {list(x.shape)}")
    return x[tuple(slice(b, e) for b, e in zip(starts, ends, strict=True))]


def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    return x[_slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)]


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """Writes into `x` itself: the caller gives what may be written to."""
    where = _slices(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    if x[where].shape != update.shape:
        raise EngineError(f"slice_update of {list(x[where].shape)} with {list(update.shape)}")
    x[where] = update
    return x


def _slices(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None,
    begin_mask: Tensor | None,
    end_mask: Tensor | None,
    squeeze_mask: Tensor | None,
) -> tuple[slice | int, ...]:
    if stride is not None and any(s < 1 for s in _ints(stride)):
        raise EngineError("slices that go backwards are not known")
    steps = [1] * x.ndim if stride is None else _ints(stride)
    open_start, open_end, single = (
        [False] * x.ndim if mask is None else [bool(m) for m in mask.tolist()]
        for mask in (begin_mask, end_mask, squeeze_mask)
    )
    found: list[slice | int] = []
    for axis, (first, last, step) in enumerate(zip(_ints(begin), _ints(end), steps, strict=True)):
        size = x.shape[axis]
        start = 0 if open_start[axis] else first + size if first < 0 else first
        stop = size if open_end[axis] else last + size if last < 0 else last
        if single[axis]:
            stop = start + 1
        # torch would cut a slice that reaches too far: here it is a fault, such as a memory that is full.
        if not 0 <= start <= stop <= size:
            raise EngineError(f"a slice of {start} to {stop} does not lie in axis {axis} of {list(x.shape)}")
        found.append(start if single[axis] else slice(start, stop, step))
    return tuple(found)


def _ints(value: Tensor) -> list[int]:
    return [int(v) for v in value.reshape(-1).tolist()]


TABLE = {
    function.__name__: function
    for function in (
        reshape,
        transpose,
        expand_dims,
        squeeze,
        concat,
        split,
        tile,
        identity,
        shape,
        gather,
        select,
        equal,
        slice_by_size,
        slice_by_index,
        slice_update,
    )
}
