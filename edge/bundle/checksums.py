"""Remembers verified checksums, so that unchanged files are not hashed again.

A small board hashes a bundle for as long as it takes to load it. As git does, a file is taken for unchanged while its
place, size and times are; `Bundle.check` reads every file whatever is remembered.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edge.bundle.manifest import Bundle, File, require, sha256
from edge.devices.host import cache_dir

NAME = "checked.json"  # in the cache folder
_MOST = 1000  # files that are remembered; the oldest go first
_SETTLED = 2.0  # seconds: a file that was touched just now may be touched again within the same tick of its clock


def check(bundle: Bundle, entries: tuple[File, ...] | None = None) -> None:
    """Hash some of a bundle's files, its own if none are named, but for those that were hashed before and have not
    changed. Raises BundleError on the first that is not what was exported."""
    known = _read()
    found: dict[str, str] = {}

    def look(entry: File) -> str:
        path = bundle.file(entry)
        before = _state(path)
        digest = known.get(before) or sha256(path)
        if _state(path) == before:
            found[before] = digest
        return digest

    entries = bundle.manifest.own() if entries is None else entries
    with ThreadPoolExecutor(max_workers=4) as pool:
        for entry, digest in zip(entries, pool.map(look, entries), strict=True):
            require(entry, digest)
    if fresh := {state: digest for state, digest in found.items() if state and state not in known}:
        _write({**known, **fresh})


def _state(path: Path) -> str:
    """What changes when a file does; nothing of one that was changed just now."""
    stat = path.stat()
    if time.time() - max(stat.st_mtime, stat.st_ctime) < _SETTLED:
        return ""
    return f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


def _read() -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # no home, no such file, or not ours: all are hashed
        found = json.loads((cache_dir() / NAME).read_bytes())
        if isinstance(found, dict) and all(isinstance(digest, str) for digest in found.values()):
            return found
    return {}


def _write(known: dict[str, str]) -> None:
    with contextlib.suppress(OSError, RuntimeError):  # a system without room for it hashes again
        place = cache_dir() / NAME
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_name(f"{place.name}.{os.getpid()}")
        beside.write_text(json.dumps(dict(list(known.items())[-_MOST:]), indent=0), encoding="utf-8")
        beside.replace(place)
