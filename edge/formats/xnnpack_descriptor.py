"""Packed weights of XNNPACK as a file's descriptor: of a finished file in the cache, or of memory.

For a library that maps what it packs into. A disk that has no room for it would end the process at some later write: so
it packs into memory, and what it made is copied to the cache. For Linux.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge.devices import uncached
from edge.formats import xnnpack_cache


@contextlib.contextmanager
def weights(path: Path, library: str, warm: Sequence[Path] = ()) -> Iterator[int | None]:
    """What to give to the library: a finished file, locked for reading, or an empty one in memory, which is copied when
    the block ends without an error. None where there is neither: it packs without one. A duplicate outlives the block,
    and its lock with it. `warm`: finished files that were shipped with the bundle, and are looked at first."""
    content = xnnpack_cache.key(path, library)
    if (finished := _opened(content, warm)) is not None:
        with _closing(finished):
            yield finished
        return
    try:
        memory = os.memfd_create("packed weights", os.MFD_CLOEXEC)
    except OSError:
        yield None
        return
    with _closing(memory):
        yield memory
        with uncached.tolerated():  # the library has what it needs; the next start packs again
            if os.fstat(memory).st_size:
                _copy(memory, content)


def _opened(content: str, warm: Sequence[Path]) -> int | None:
    with uncached.tolerated():
        finished = xnnpack_cache.shipped(content, warm) or xnnpack_cache.found(content)
        return None if finished is None else _locked(finished)
    return None


def _locked(path: Path) -> int:
    """So long as one has it, none can have it for writing: the library empties a file that it cannot read."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _copy(memory: int, content: str) -> None:
    part, size = xnnpack_cache.new(), os.fstat(memory).st_size
    try:
        with part.open("xb") as file:
            done = 0
            while done < size:
                done += os.sendfile(file.fileno(), memory, done, size - done)
        xnnpack_cache.keep(part, content)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _closing(handle: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(handle)
