"""Lock of a folder, which ends with the process that holds it: whoever cannot take it knows that another is at work.

Process numbers do not tell that: they mean nothing in another container, and nothing on another host.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def held(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether the folder that now has this name is locked by us, until the block ends; it may be renamed meanwhile.
    `wait` for whoever holds it. False too where the system or the file system has no such locks, and where no folder
    is there."""
    handle = _taken(folder, wait) if sys.platform != "win32" else None
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def _taken(folder: Path, wait: bool) -> int | None:
    import fcntl  # Windows has none

    while True:
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(handle), os.lstat(folder)):
                return handle
        except OSError:  # another holds it, has renamed it, or there are no such locks
            os.close(handle)
            return None
        os.close(handle)  # another has the name by now
