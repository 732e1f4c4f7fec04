"""Checks a bundle's files against the manifest's hashes; a file that has not changed since is not hashed again.

`Bundle.check` reads every file whatever is remembered.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edge.bundle.manifest import Bundle, File, require, sha256
from edge.devices import file_facts
from edge.errors import BundleError


def check(bundle: Bundle, entries: Iterable[File] | None = None) -> None:
    """Hash some of a bundle's files, its own if none are named, but for those that were hashed before and have not
    changed. Raises BundleError on the first that is not what was exported."""
    entries = tuple(bundle.manifest.own() if entries is None else entries)
    if len(entries) == 1:
        _check(bundle, entries[0])
        return
    with ThreadPoolExecutor(max_workers=4) as pool:
        for _ in pool.map(lambda entry: _check(bundle, entry), entries):
            pass


def _check(bundle: Bundle, entry: File) -> None:
    def hashed(path: Path) -> str:
        require(entry, digest := sha256(path))  # what is damaged is looked at again
        return digest

    try:
        require(entry, file_facts.fact(bundle.file(entry), file_facts.SHA256, hashed))
    except OSError as error:
        raise BundleError(
            f"{entry.path} cannot be read: {error.strerror or error}", hint="copy or export the bundle again"
        ) from error
