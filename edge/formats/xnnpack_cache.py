"""Cache of XNNPACK's packed weights: files in the user's cache folder.

Such a file is mapped, so that the weights lie in memory once for all signatures, and a second start packs nothing. Each
belongs to the content of one file of weights, one version of the library, and one processor. What is computed from it
is as good as the file is: its name holds its hash, and one that has another is packed again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge.devices import file_facts, host, uncached

MOST = 8 << 30  # bytes that are kept; those that were not used for longest go first
_ROOM = 2  # times the file's size: the two that are packed at a time have room together
_ABANDONED = 24 * 3600  # seconds
_TOUCHED = ".used"  # a file beside each, touched when it is used: to touch the file itself would make it a changed one
FOLDER = "packed"  # in the cache folder


def folder() -> Path:
    return host.cache_dir() / FOLDER


@contextlib.contextmanager
def weights(path: Path, library: str, warm: Sequence[Path] = ()) -> Iterator[Path | None]:
    """The file to give to the library: a finished one, or one that becomes so when the block ends without an error.
    None where nothing can be written, or others can write: it then packs into memory. `warm`: those that were shipped
    with the bundle, and are looked at first."""
    content = key(path, library)
    finished: Path | None = None
    part: Path | None = None
    try:
        finished = shipped(content, [one for one in warm if _is_quoted(one)])
        if finished is None and _is_quoted(folder()):
            finished = found(content)
            part = None if finished else _with_room(path)
    except (OSError, RuntimeError) as error:  # not writable, or a user without a home
        uncached.warn(error)
        finished = part = None
    if finished or not part:
        yield finished
        return
    try:
        yield part
        with uncached.tolerated():  # the library has its mapping already; the next start packs again
            if part.is_file() and part.stat().st_size:
                keep(part, content)
    finally:
        part.unlink(missing_ok=True)


def key(path: Path, library: str) -> str:
    """What is packed from the file's content, by a library of a version, on this processor."""
    here, content = host.inspect(), file_facts.fact(path, file_facts.SHA256, _sha256)
    return hashlib.sha256(repr([content, library, here.name, here.isa]).encode()).hexdigest()[:32]


def _is_quoted(path: Path) -> bool:
    """Whether the library can be told the place."""
    return not set(str(path)) & set('"\\\n')


def shipped(content: str, warm: Sequence[Path]) -> Path | None:
    """The file of a key among those that were shipped with the bundle, if it is sound; it is left as it is."""
    for path in warm:
        if path.name.startswith(f"{content}-"):
            with uncached.tolerated():
                if _sound(path):
                    _USED[content] = path
                    return path
                uncached.damaged(str(path), "weights are packed again")
    return None


def used() -> list[Path]:
    """Of this process: what it was given, and what it packed."""
    return [path for path in _USED.values() if path.exists()]


def found(content: str) -> Path | None:
    """The finished file of a key, None where there is none that is sound. Raises OSError where the folder is another
    user's, and RuntimeError without a home."""
    for finished in file_facts.private_folder(FOLDER).glob(f"{content}-*.bin"):
        if _sound(finished):
            with contextlib.suppress(OSError):  # what can only be read serves all the same
                finished.with_suffix(_TOUCHED).touch()
            _USED[content] = finished
            return finished
        uncached.damaged(str(finished), "weights are packed again")
        _remove(finished)
    return None


def new() -> Path:
    """A name in the folder that no file has: the library makes it, and an empty one is no cache to it. Raises as
    `found`."""
    handle, name = tempfile.mkstemp(dir=file_facts.private_folder(FOLDER), suffix=".part")
    os.close(handle)
    os.unlink(name)
    return Path(name)


def _with_room(path: Path) -> Path:
    """As `new`, for what is packed from a file. The library ends the process where it cannot write on: a disk that has
    too little room raises OSError instead."""
    part = new()
    if shutil.disk_usage(part.parent).free < _ROOM * path.stat().st_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return part


def keep(part: Path, content: str) -> None:
    """Give a file the name of its key and content, once it is on the disk, and make room. Raises OSError."""
    with part.open("r+b") as file:  # some systems sync only what could be written
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    part.replace(named := part.with_name(f"{content}-{digest}.bin"))
    _MADE[named] = _state(named)
    _USED[content] = named
    _trim(named)


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
    touched = path.with_suffix(_TOUCHED)
    return (touched if touched.exists() else path).stat().st_mtime_ns


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(_TOUCHED).unlink(missing_ok=True)


_MADE: dict[Path, tuple[int, ...]] = {}  # what this process packed, as it was then
_USED: dict[str, Path] = {}  # key -> the file that this process was given for it, or packed
