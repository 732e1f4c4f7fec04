"""Files that are there whole or not at all: written aside, put on the disk, and renamed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

_PART = re.compile(r"[0-9a-f]{16}\.part", re.ASCII)


@contextlib.contextmanager
def aside(final: Path, *, mode: int = 0o666, synced: bool = True) -> Iterator[Path]:
    """An empty file to write to; it becomes `final` when the block ends well, and vanishes otherwise. Nobody else can
    have put it there, and no link is followed. What a process that was killed left beside it is removed. `synced`: it
    is on the disk before it has the name. Raises OSError."""
    _sweep(final)
    beside, handle = _begun(final, mode)
    try:
        yield beside
        if synced:
            to_disk(beside)
        beside.replace(final)
        if synced:
            to_disk(final.parent)
    finally:
        beside.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def _begun(final: Path, mode: int) -> tuple[Path, int | None]:
    """The new file, and the handle that holds it as long as it is written to; None where that would be in the way."""
    while True:
        beside = final.with_name(f".{final.name}.{secrets.token_hex(8)}.part")
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        if sys.platform == "win32":  # what is open there can be neither renamed nor removed
            os.close(handle)
            return beside, None
        if _taken(handle) or beside.exists():
            return beside, handle
        os.close(handle)  # another took it for one that was left, before it was held


def _sweep(final: Path) -> None:
    """Remove what nobody holds of what was begun for this file. Where there are no locks, it stays."""
    if sys.platform == "win32":
        return
    before = f".{final.name}."
    with contextlib.suppress(OSError), os.scandir(final.parent) as found:
        left = [e.path for e in found if e.name.startswith(before) and _PART.fullmatch(e.name[len(before) :])]
        for path in left:
            _remove(path)


def _remove(path: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if _taken(handle):
            os.unlink(path)
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    import fcntl  # Windows has none

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Raises OSError."""
    folder = path.is_dir()
    if folder and os.name != "posix":  # there a folder cannot be opened
        return
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def tree_to_disk(folder: Path) -> None:
    """All files and folders below, and itself. Raises OSError."""
    for place, _, names in os.walk(folder):
        for name in names:
            if not (path := Path(place, name)).is_symlink():
                to_disk(path)
        to_disk(Path(place))
