"""Where a parameter's numbers come from: tensors of a checkpoint, and what is done with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

Shape = tuple[int, ...]


class Transform(Protocol):
    """Of the tensor that a source's names make, joined along dim 0."""

    def shape(self, shape: Shape) -> Shape:
        """What it makes of a tensor of this shape. Raises ValueError where it cannot be done."""
        ...

    def largest(self, value: float) -> float:
        """How large numbers up to this magnitude can become."""
        ...

    def __call__(self, tensor: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Source:
    """The tensors `names`, joined along dim 0, and then transformed."""

    names: tuple[str, ...]
    transform: Transform | None = None

    def shape(self, shape_of: Callable[[str], Shape]) -> Shape:
        """Of the parameter. Raises ValueError where these tensors make none."""
        shapes = [shape_of(name) for name in self.names]
        if any(shape[1:] != shapes[0][1:] for shape in shapes):
            raise ValueError("they cannot be joined")
        joined = (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[0] else ()
        return self.transform.shape(joined) if self.transform else joined

    def largest(self, value: float) -> float:
        """How large the parameter can be of numbers up to this magnitude."""
        return self.transform.largest(value) if self.transform else value

    def load(self, tensor_of: Callable[[str], Tensor], dtype: torch.dtype) -> Tensor:
        tensors = [tensor_of(name) for name in self.names]
        if len(tensors) == 1:
            # Copied even where the dtype is right already: a mapped tensor must not be changed nor outlive its file.
            made = tensors[0].to(dtype, copy=True)
        else:
            made = torch.cat([tensor.to(dtype) for tensor in tensors])
        return self.transform(made).contiguous() if self.transform else made


@dataclass(frozen=True)
class Split:
    """`count` rows from `first` on: of a tensor in which a checkpoint keeps several."""

    first: int
    count: int

    def shape(self, shape: Shape) -> Shape:
        if not shape or not 0 <= self.first < self.first + self.count <= shape[0]:
            raise ValueError(f"there are no rows {self.first} to {self.first + self.count}")
        return (self.count, *shape[1:])

    def largest(self, value: float) -> float:
        return value

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor[self.first : self.first + self.count].clone()  # not the whole kept alive by a part


@dataclass(frozen=True)
class Squeeze:
    """Without a first axis of one."""

    def shape(self, shape: Shape) -> Shape:
        if len(shape) < 2 or shape[0] != 1:
            raise ValueError("its first axis is not one")
        return shape[1:]

    def largest(self, value: float) -> float:
        return value

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor[0]


@dataclass(frozen=True)
class Permute:
    """Rows in another order: row `i` of the parameter is row `order[i]` of the checkpoint's tensor."""

    order: tuple[int, ...]

    def shape(self, shape: Shape) -> Shape:
        if not shape or sorted(self.order) != list(range(shape[0])):
            raise ValueError(f"an order of {len(self.order)} rows is not one of theirs")
        return shape

    def largest(self, value: float) -> float:
        return value

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor[list(self.order)]


@dataclass(frozen=True)
class Transpose:
    """`[in, out]`, as some checkpoints keep a matmul, to `[out, in]`."""

    def shape(self, shape: Shape) -> Shape:
        if len(shape) != 2:
            raise ValueError("only a matrix is transposed")
        return shape[::-1]

    def largest(self, value: float) -> float:
        return value

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor.T


@dataclass(frozen=True)
class Flatten:
    """`[out, in, h, w]`, filters that do not overlap, to the matrix `[out, in * h * w]` of their product."""

    def shape(self, shape: Shape) -> Shape:
        if len(shape) != 4:
            raise ValueError("only filters are flattened")
        return (shape[0], math.prod(shape[1:]))

    def largest(self, value: float) -> float:
        return value

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor.flatten(1)


@dataclass(frozen=True)
class Sines:
    """`[.., D]` to `[D / 2, count]`: the sines of `count` positions, which a checkpoint does not keep. What is read
    only says how wide they are."""

    count: int

    def shape(self, shape: Shape) -> Shape:
        if not shape or shape[-1] % 4:
            raise ValueError("the last axis must have a multiple of four numbers")
        return (shape[-1] // 2, self.count)

    def largest(self, value: float) -> float:
        return 1.0

    def __call__(self, tensor: Tensor) -> Tensor:
        return sines(self.count, tensor.shape[-1] // 2).T.to(tensor.dtype)


def sines(count: int, width: int) -> Tensor:
    """`[count, width]`: of positions from 0 on, sines and behind them cosines of width / 2 frequencies (arXiv
    1706.03762, section 3.5)."""
    half = width // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device="cpu") / half)
    angles = torch.outer(torch.arange(count, dtype=torch.float64, device="cpu"), frequencies)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@dataclass(frozen=True)
class Scale:
    """Times a number."""

    factor: float

    def shape(self, shape: Shape) -> Shape:
        return shape

    def largest(self, value: float) -> float:
        return abs(self.factor) * value

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor * self.factor


@dataclass(frozen=True)
class ScaleRows:
    """The first `count` rows times a number."""

    count: int
    factor: float

    def shape(self, shape: Shape) -> Shape:
        if not shape or not 0 < self.count <= shape[0]:
            raise ValueError(f"there are no {self.count} rows")
        return shape

    def largest(self, value: float) -> float:
        return max(1.0, abs(self.factor)) * value

    def __call__(self, tensor: Tensor) -> Tensor:
        return torch.cat([tensor[: self.count] * self.factor, tensor[self.count :]])


@dataclass(frozen=True)
class OnePlus:
    """`1 + w`: norms whose checkpoints keep how far a gain is from one."""

    def shape(self, shape: Shape) -> Shape:
        return shape

    def largest(self, value: float) -> float:
        return 1 + value

    def __call__(self, tensor: Tensor) -> Tensor:
        return 1 + tensor


@dataclass(frozen=True)
class Standardise:
    """A layer norm without weights, over the last axis: of numbers that it always gives the same."""

    width: int
    eps: float

    def shape(self, shape: Shape) -> Shape:
        if not shape or shape[-1] != self.width:
            raise ValueError(f"the last axis must have {self.width} numbers")
        return shape

    def largest(self, value: float) -> float:
        return float(self.width**0.5)

    def __call__(self, tensor: Tensor) -> Tensor:
        return functional.layer_norm(tensor, (self.width,), eps=self.eps)
