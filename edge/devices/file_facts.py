"""Facts about files, remembered while the files do not change: what takes long to find is found once.

A small board hashes a bundle for as long as it takes to load it. As git does, a file is taken for unchanged while its
place, size and times are.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from edge.devices import uncached, whole_files
from edge.devices.host import cache_dir

NAME = "checked.json"  # in the cache folder
_MOST = 4000  # facts that are remembered; the oldest go first
_SETTLED = 2.0  # seconds: a file that was touched just now may be touched again within the same tick of its clock
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
SHA256 = "sha256"  # the fact that stands under a file's state alone


def fact(path: Path, name: str, find: Callable[[Path], str]) -> str:
    """What `find` says of the file; of one that has not changed since, what it said then. The same fact of the same
    file is found by one thread at a time. What `find` raises is raised, and not remembered."""
    with _turn(f"{name} {path}"):
        before = state(path)
        known = _known()
        key = before if name == SHA256 else f"{name} {before}"
        if before and key in known:
            return known[key]
        found = find(path)
        if before and state(path) == before:
            _remember(key, found)
        return found


def state(path: Path) -> str:
    """What changes when a file does; nothing of one that was changed just now. Raises OSError."""
    found = path.stat()
    if time.time() - max(found.st_mtime, found.st_ctime) < _SETTLED:
        return ""
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def private_folder(*names: str) -> Path:
    """The cache folder, or one below it, made where it is missing: for what this user alone may write, as it decides
    what is computed from. Raises OSError where it is another user's or cannot be made, and RuntimeError without a
    home."""
    place = cache_dir()
    place.parent.mkdir(parents=True, exist_ok=True)
    for folder in (place, *(place.joinpath(*names[: n + 1]) for n in range(len(names)))):
        folder.mkdir(mode=0o700, exist_ok=True)
        _require_own(folder)
    return place.joinpath(*names)


def _require_own(folder: Path) -> None:
    if sys.platform == "win32":  # below a user's profile nobody else may write
        return
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not this user's own folder")
    if found.st_mode & _OTHERS:
        folder.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)


def _known() -> Mapping[str, str]:
    with uncached.tolerated():
        place = cache_dir() / NAME
        found = place.lstat()
        _require_own(place.parent)
        try:
            return _read(place, found.st_ino, found.st_size, found.st_mtime_ns)
        except ValueError:
            uncached.damaged(str(place), "files are hashed again")
    return {}


@functools.lru_cache(maxsize=1)
def _read(place: Path, *_state: int) -> Mapping[str, str]:
    found = json.loads(place.read_bytes())
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"{place} is not ours")
    return found


def _remember(key: str, value: str) -> None:
    with uncached.tolerated(), _WRITING:  # a system without room for it finds it again
        place = private_folder() / NAME
        kept = {**{k: v for k, v in _known().items() if k != key}, key: value}
        with whole_files.aside(place, synced=False) as beside:
            beside.write_text(json.dumps(dict(list(kept.items())[-_MOST:]), indent=0), encoding="utf-8")


@contextlib.contextmanager
def _turn(what: str) -> Iterator[None]:
    with _WRITING:
        lock = _TURNS.setdefault(what, threading.Lock())
    with lock:
        yield


_WRITING = threading.RLock()
_TURNS: dict[str, threading.Lock] = {}
