"""Cache of XNNPACK's packed weights: files in the user's cache folder.

Such a file is mapped, so that the weights lie in memory once for all signatures, and a second start packs nothing. Each
belongs to one file of weights as it is, to one version of the library, and to one processor. What is computed from it
is as good as the file is: its name holds its hash, and one that has another is packed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from edge.devices import file_facts, host

MOST = 8 << 30  # bytes that are kept; those that were not used for longest go first
_ABANDONED = 24 * 3600  # seconds
_USED = ".used"  # a file beside each, touched when it is used: to touch the file itself would make it a changed one
FOLDER = "packed"  # in the cache folder


def folder() -> Path:
    return host.cache_dir() / FOLDER


@contextlib.contextmanager
def weights(path: Path, library: str) -> Iterator[Path | None]:
    """The file to give to the library: a finished one, or one that becomes so when the block ends without an error.
    None where nothing can be written, or others can write: it then packs into memory."""
    key = _key(path, library)
    finished, part = _places(key)
    if finished or not part:
        yield finished
        return
    try:
        yield part
        with contextlib.suppress(OSError):  # the library has its mapping already; the next start packs again
            if part.is_file() and part.stat().st_size:
                _trim(_finish(part, key))
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
        if set(str(folder())) & set('"\\\n'):  # the library is told the place in quotes
            return None, None
        place = file_facts.private_folder(FOLDER)
        for finished in place.glob(f"{key}-*.bin"):
            if _sound(finished):
                finished.with_suffix(_USED).touch()
                return finished, None
            _remove(finished)  # it was cut or damaged, and is made again
        handle, name = tempfile.mkstemp(dir=place, suffix=".part")
        os.close(handle)
        os.unlink(name)  # the library makes it; an empty one is no cache to it
    except (OSError, RuntimeError):  # not writable, or a user without a home
        return None, None
    return None, Path(name)


def _finish(part: Path, key: str) -> Path:
    """The file under the name of its content, once it is on the disk."""
    with part.open("r+b") as file:  # some systems sync only what could be written
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    part.replace(named := part.with_name(f"{key}-{digest}.bin"))
    _MADE[named] = _state(named)
    return named


def _sound(finished: Path) -> bool:
    """Whether it is what was packed. One that this process packed itself has not settled yet."""
    expected = finished.stem.partition("-")[2]
    if finished.is_symlink() or len(expected) != hashlib.sha256().digest_size * 2:
        return False
    if _MADE.get(finished) == _state(finished):
        return True
    return file_facts.fact(finished, file_facts.SHA256, _sha256) == expected


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _trim(newest: Path) -> None:
    place = newest.parent
    for left in place.glob("*.part"):  # by a process that was ended
        if time.time() - left.stat().st_mtime > _ABANDONED:
            left.unlink(missing_ok=True)
    total = 0
    for path in sorted(place.glob("*.bin"), key=_last_used, reverse=True):
        total += path.stat().st_size
        if total > MOST and path != newest:
            _remove(path)


def _last_used(path: Path) -> int:
    used = path.with_suffix(_USED)
    return (used if used.exists() else path).stat().st_mtime_ns


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(_USED).unlink(missing_ok=True)


_MADE: dict[Path, tuple[int, ...]] = {}  # what this process packed, as it was then
