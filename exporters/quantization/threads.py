"""Threads for many small computations of torch, each of which would keep one thread busy for a moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Given = TypeVar("Given")
Found = TypeVar("Found")


def each(compute: Callable[[Given], Found], items: Iterable[Given]) -> Iterator[Found]:
    """In order, on as many threads as torch has, without gradients. Its own wait for each other after every small step,
    which takes a hundred times as long on a machine that does something else besides."""

    @torch.no_grad()  # of a thread
    def found(item: Given) -> Found:
        return compute(item)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(found, items)
    finally:
        torch.set_num_threads(threads)
