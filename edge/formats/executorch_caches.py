"""KV caches of an ExecuTorch program: where in the memory that a method is planned for they lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge.formats.flatbuffers import Damage, Numbers, Tables

_TENSOR = 5  # of KernelTypes
_FLOAT = 6  # of ScalarType


@dataclass(frozen=True)
class Cache:
    """Numbers in float32, positions along the second axis."""

    memory: int  # which of the method's
    offset: int  # bytes
    shape: tuple[int, ...]


def caches(values: Tables, chosen: Numbers, methods: Numbers, count: int) -> list[tuple[Cache, ...]]:
    """Of each of `count` methods, those of the chosen values that are tensors in float32, each once; `methods` says
    whose each is."""
    found: list[dict[Cache, None]] = [{} for _ in range(count)]
    inner, known = Tables(values.data, values.at[chosen], "a value").table(1, "a value")
    kinds = values.scalar(0, "<u1")[chosen]
    for at, index in zip(inner.at.tolist(), known.tolist(), strict=True):
        if kinds[index] == _TENSOR and (cache := _cache(Tables(values.data, np.array([at]), "a tensor"))):
            found[int(methods[index])][cache] = None
    return [tuple(each) for each in found]


def _cache(tensor: Tables) -> Cache | None:
    place, there = tensor.table(6, "a tensor")
    sizes, _ = tensor.numbers(2, "<i4")
    if not len(there) or int(tensor.scalar(0, "<i1")[0]) != _FLOAT or len(sizes) > 16 or np.any(sizes < 0):
        return None
    memory, low, high = (int(place.scalar(entry, "<u4")[0]) for entry in range(3))
    if memory < 1:  # the runtime counts from 1
        raise Damage("a tensor in a memory that is none")
    return Cache(memory - 1, high << 32 | low, tuple(sizes.tolist()))
