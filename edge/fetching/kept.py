"""Bundles that were fetched or unpacked, kept in the user's cache: a folder for each address, and for each archive.

The address of another version is another address: what is here is not asked for again, so that a device answers without
a network. To fetch it anew, remove its folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urldefrag

from edge.bundle import folder_lock
from edge.bundle.manifest import MANIFEST
from edge.devices import file_facts
from edge.errors import BundleError, EdgeError, UsageError
from edge.fetching import Told, download
from edge.fetching.unpack import unpack

_PLACE = "bundles"  # in the cache folder
_NAMED = re.compile(r"sha256=([0-9a-f]{64})", re.ASCII | re.IGNORECASE)


def address(place: str, told: Told) -> Path:
    """The folder of the bundle at an https address of its archive, whose sha256 may stand behind it as pip has it:
    `https://HOST/BUNDLE.zip#sha256=…`. Raises as `edge.fetching.folder`."""
    bare, fragment = urldefrag(place)
    expected = _NAMED.fullmatch(fragment)
    if fragment and not expected:
        raise UsageError(f"{place!r} ends with what is no sha256", hint="https://HOST/BUNDLE.zip#sha256=64 digits")
    download.require_safe(bare)

    def fetched(folder: Path) -> None:
        part = folder / "archive.part"
        download.fetch(bare, part, told)
        try:
            if expected:
                download.require_digest(part, expected[1].lower())
            unpack(part, folder / "bundle")
        finally:
            part.unlink(missing_ok=True)

    return _kept(place, fetched)


def archive(path: Path, told: Told) -> Path:
    """The folder of the bundle in an archive on this disk. Raises as `edge.fetching.folder`."""

    def unpacked(folder: Path) -> None:
        told(f"unpacking {path}")
        unpack(path, folder / "bundle")

    try:
        content = file_facts.fact(path, file_facts.SHA256, _sha256)
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}", hint="check who may read it") from error
    return _kept(content, unpacked)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kept(name: str, make: Callable[[Path], None]) -> Path:
    """The kept bundle of that name; made where it is not there, by one process at a time."""
    try:
        folder = file_facts.private_folder(_PLACE, hashlib.sha256(name.encode()).hexdigest()[:20])
        bundle = folder / "bundle"
        with folder_lock.held(folder, wait=True):
            if not (bundle / MANIFEST).is_file():
                make(folder)
        return bundle
    except (OSError, RuntimeError) as error:
        raise EdgeError(
            f"cannot keep a bundle in the cache: {error}",
            hint="set XDG_CACHE_HOME to a folder of yours, or unpack the archive and give the folder",
        ) from error
