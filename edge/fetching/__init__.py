"""Bundles that are no folder yet: an archive, the address of one, or a repository of the hub, each made a folder here.

What was fetched is kept in the user's cache, and nobody is asked for it again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from edge.errors import BundleError

Told = Callable[[str], None]  # what is being done, for people

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.ASCII | re.IGNORECASE)


def folder(place: str, told: Told) -> Path:
    """The folder of a bundle that is told by its folder, its archive (`.zip`), the https address of an archive, or its
    repository on the hub (`owner/name`). What is on this disk goes before what is on the hub.

    Raises BundleError where it cannot be had or is damaged, and UsageError on an address of another kind. A folder
    without a bundle is left to whoever opens it.
    """
    if _ADDRESS.match(place):
        from edge.fetching import kept

        return kept.address(place, told)
    path = Path(place)
    if path.is_file() and path.suffix.lower() == ".zip":
        from edge.fetching import kept

        return kept.archive(path, told)
    if not path.exists() and _HUB.fullmatch(place):
        from edge.fetching import hub

        return hub.bundle(place, told)
    if not path.exists() and path.suffix.lower() == ".zip":
        raise BundleError(f"no such archive: {place!r}", hint="edge package BUNDLE --zip FILE.zip writes one")
    return path
