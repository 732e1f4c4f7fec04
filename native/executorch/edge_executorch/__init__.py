"""ExecuTorch programs from Python without torch: files are opened, their methods run on numpy arrays.

    program = Program("model.pte", ["forward"], threads=2)
    (made,) = program.run("forward", array)

The libraries beside this file are ExecuTorch's own, from its wheel; `libedge_executorch` is the C interface to them,
and has the two operators of its language models that they lack, for float32.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Failure", "Program", "backends", "operators", "threads"]
__version__ = metadata.version("edge-vlm-executorch")

_NO_MEMORY = 2
_RANK = 16
# ScalarType of ExecuTorch's -> dtype
_KINDS = {
    0: "uint8",
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "float16",
    6: "float32",
    7: "float64",
    11: "bool",
}
_NUMBERS = {name: kind for kind, name in _KINDS.items()}


class Failure(Exception):
    """The library refused something, or failed; the text is its own."""


class _Array(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("sizes", ctypes.c_int64 * _RANK),
        ("data", ctypes.c_void_p),
    )


class Program:
    """Methods of a file. What they were planned to share they share; nothing else does."""

    def __init__(
        self, path: os.PathLike[str] | str, methods: Sequence[str], threads: int, *, packed: int | None = None
    ) -> None:
        """Raises Failure, and MemoryError.

        packed: a file's descriptor. Weights are packed into one that is empty; one that holds what was packed of this
        program before, by this version on such a processor, is mapped and trusted: lock it for reading meanwhile.
        """
        self._methods = {name: number for number, name in enumerate(methods)}
        self._running = self._closing = False
        names = (ctypes.c_char_p * len(methods))(*(name.encode() for name in methods))
        self._handle = ctypes.c_void_p()
        file = -1 if packed is None else packed
        opened = os.fsencode(path), names, len(methods), threads, file, ctypes.byref(self._handle)
        # Before it is open: Ctrl-C may come right after.
        self._finalize = weakref.finalize(self, _close, self._handle, os.getpid())
        with _calling() as library:
            _check(library.edge_executorch_open(*opened))

    def run(self, method: str, *arrays: NDArray[Any], results: int = 1) -> list[NDArray[Any]]:
        """The results, copied. Raises Failure where an array does not fit or the method fails, KeyError where that was
        not among those that were opened, and MemoryError."""
        plain = [np.ascontiguousarray(array) for array in arrays]
        given = (_Array * len(plain))(*map(_described, plain))
        made = (_Array * results)()
        number = self._methods[method]
        with _calling() as library:
            if not self._finalize.alive:
                raise Failure("the program is closed")
            self._running = True
            try:
                _check(library.edge_executorch_run(self._handle, number, given, len(plain), made, results))
                return [_copied(one) for one in made]
            finally:
                self._running = False
                if self._closing:
                    self._finalize()

    def read(self, method: str, place: int, offset: int, size: int) -> NDArray[np.uint8]:
        """Bytes of the numbered memory that a method was planned for, copied: what it keeps lies there. Raises Failure
        where that has fewer, and KeyError as `run`."""
        found = np.empty(size, np.uint8)
        self._copy(method, place, offset, found, write=False)
        return found

    def write(self, method: str, place: int, offset: int, array: NDArray[Any]) -> None:
        """An array's bytes into such a memory. Raises as `read`."""
        self._copy(method, place, offset, np.ascontiguousarray(array), write=True)

    def close(self) -> None:
        """Let its memory go; so does the end of the program's life. What runs ends first."""
        with _ONE_AT_A_TIME:
            if self._running:
                self._closing = True
            else:
                self._finalize()

    def _copy(self, method: str, place: int, offset: int, array: NDArray[Any], *, write: bool) -> None:
        where = self._methods[method], place, ctypes.c_int64(offset), ctypes.c_int64(array.nbytes)
        with _calling() as library:
            if not self._finalize.alive:
                raise Failure("the program is closed")
            _check(library.edge_executorch_copy(self._handle, *where, ctypes.c_void_p(array.ctypes.data), int(write)))


def operators() -> frozenset[str]:
    """What methods may call."""
    return _registered(1)


def backends() -> frozenset[str]:
    """What may compute parts of them."""
    return _registered(0)


def threads() -> int:
    """How many the last program that was opened or run takes."""
    with _calling() as library:
        return int(library.edge_executorch_threads())


def _close(handle: ctypes.c_void_p, process: int) -> None:
    if handle and os.getpid() == process:  # a fork has the memory, and none of the threads
        with _calling() as library:
            library.edge_executorch_close(handle)


def _registered(kind: int) -> frozenset[str]:
    with _calling() as library:
        return frozenset(library.edge_executorch_registered(kind).decode().split())


def _described(array: NDArray[Any]) -> _Array:
    if str(array.dtype) not in _NUMBERS or array.ndim > _RANK:
        raise Failure(f"no array that a program takes: {array.dtype} of {array.ndim} axes")
    sizes = (ctypes.c_int64 * _RANK)(*array.shape)
    return _Array(_NUMBERS[str(array.dtype)], array.ndim, sizes, array.ctypes.data)


def _copied(array: _Array) -> NDArray[Any]:
    shape, dtype = tuple(array.sizes[: array.rank]), _KINDS.get(array.kind)
    if dtype is None:
        raise Failure(f"a result of numbers of the type {array.kind}")
    found = np.empty(shape, dtype)
    if found.nbytes:
        if not array.data:
            raise Failure("a result without memory")
        ctypes.memmove(found.ctypes.data, array.data, found.nbytes)
    return found


def _check(status: int) -> None:
    if status == _NO_MEMORY:
        raise MemoryError("no memory for an ExecuTorch program")
    if status:
        raise Failure(_library().edge_executorch_reason().decode(errors="replace") or "no reason was given")


@contextmanager
def _calling() -> Iterator[Any]:
    """The library, for one thread at a time."""
    with _ONE_AT_A_TIME:
        yield _library()


@cache
def _library() -> Any:
    library = ctypes.CDLL(str(Path(__file__).parent / "libedge_executorch.so"))
    library.edge_executorch_reason.restype = ctypes.c_char_p
    library.edge_executorch_registered.restype = ctypes.c_char_p
    os.register_at_fork(after_in_child=_after_fork)
    return library


def _after_fork() -> None:
    """Another thread may have had it, which the child has not."""
    global _ONE_AT_A_TIME
    _ONE_AT_A_TIME = threading.RLock()


_ONE_AT_A_TIME = threading.RLock()  # again in a thread that has it: collecting garbage may close a program
