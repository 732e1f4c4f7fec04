"""Cache of XNNPACK's packed weights: files in the user's cache folder.

Such a file is mapped, so that the weights lie in memory once for all signatures, and a second start packs nothing. Each
belongs to one file of weights as it is, to one version of the library, and to one processor.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from edge.devices import host

MOST = 8 << 30  # bytes that are kept; those that were not used for longest go first
_ABANDONED = 24 * 3600  # seconds
FOLDER = "packed"  # in the cache folder


def folder() -> Path:
    return host.cache_dir() / FOLDER


@contextlib.contextmanager
def weights(path: Path, library: str) -> Iterator[Path | None]:
    """The file to give to the library: a finished one, or one that becomes so when the block ends without an error.
    None where nothing can be written: it then packs into memory."""
    finished, part = _places(_key(path, library))
    if finished or not part:
        yield finished
        return
    try:
        yield part
        with contextlib.suppress(OSError):  # the library has its mapping already; the next start packs again
            if part.is_file() and (size := part.stat().st_size):
                part.replace(named := folder() / _name(_key(path, library), size))
                _trim(named)
    finally:
        part.unlink(missing_ok=True)


def _key(path: Path, library: str) -> str:
    stat, here = path.stat(), host.inspect()
    # A file that was changed has another ctime, whatever its name and size.
    known = [path.resolve(), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return hashlib.sha256(repr([*map(str, known), library, here.name, here.isa]).encode()).hexdigest()[:32]


def _places(key: str) -> tuple[Path | None, Path | None]:
    """The finished file, or where one can be made."""
    try:
        place = folder()
        if set(str(place)) & set('"\\\n'):  # the library is told the place in quotes
            return None, None
        place.mkdir(parents=True, exist_ok=True)
        for finished in place.glob(f"{key}-*.bin"):
            if finished.name == _name(key, finished.stat().st_size):  # else it was cut, and is made again
                os.utime(finished)
                return finished, None
        handle, name = tempfile.mkstemp(dir=place, suffix=".part")
        os.close(handle)
        os.unlink(name)  # the library makes it; an empty one is no cache to it
    except (OSError, RuntimeError):  # not writable, or a user without a home
        return None, None
    return None, Path(name)


def _name(key: str, size: int) -> str:
    return f"{key}-{size}.bin"


def _trim(newest: Path) -> None:
    place = newest.parent
    for left in place.glob("*.part"):  # by a process that was ended
        if time.time() - left.stat().st_mtime > _ABANDONED:
            left.unlink(missing_ok=True)
    files = sorted(((p.stat().st_mtime_ns, p.stat().st_size, p) for p in place.glob("*.bin")), reverse=True)
    total = 0
    for _, size, path in files:
        total += size
        if total > MOST and path != newest:
            path.unlink(missing_ok=True)
