"""Files that are there whole or not at all: written aside, put on the disk, and renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def aside(final: Path, *, mode: int = 0o666, synced: bool = True) -> Iterator[Path]:
    """An empty file to write to; it becomes `final` when the block ends well, and vanishes otherwise. Nobody else can
    have put it there, and no link is followed. `synced`: it is on the disk before it has the name. Raises OSError."""
    beside = final.with_name(f".{final.name}.{secrets.token_hex(8)}.part")
    os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    try:
        yield beside
        if synced:
            to_disk(beside)
        beside.replace(final)
        if synced:
            to_disk(final.parent)
    finally:
        beside.unlink(missing_ok=True)


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
