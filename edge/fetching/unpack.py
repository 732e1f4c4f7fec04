"""A bundle's archive made a folder: only what its manifest describes, each file with its size and hash."""

from __future__ import annotations

import hashlib
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

from edge.bundle import manifest_file, staging
from edge.bundle.manifest import MANIFEST, File, Manifest, require
from edge.bundle.signature import MOST_BYTES, SIGNATURE
from edge.errors import BundleError
from edge.fetching.download import SPARE
from edge.units import format_size

_PIECE = 1 << 20
# What zipfile raises on damaged bytes: names that are no text, lengths that are none.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, LookupError, RuntimeError, ValueError, OverflowError)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def unpack(archive: Path, destination: Path) -> None:
    """Unpack a zip that holds a bundle at its top, or in one folder there. Raises BundleError where it does not, or is
    damaged; nothing is left then.

    A manifest is read before anything else, and no more bytes than it names are written: a hostile archive fills no
    disk and reaches no place outside.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            _unpack(opened, archive.stat().st_size, destination)
    except _DAMAGE as error:
        raise BundleError(f"{archive.name} is no whole zip: {error}", hint="fetch or write it again") from error


def _unpack(archive: zipfile.ZipFile, whole: int, destination: Path) -> None:
    members = {info.filename: info for info in archive.infolist() if not info.filename.endswith("/")}
    if any(not 0 <= info.header_offset < whole for info in members.values()):
        raise zipfile.BadZipFile("it places a file outside itself")
    top = _top(members)
    head = _member(members, top + MANIFEST)
    try:
        manifest_file.require_size(head.file_size)
        with archive.open(head) as file:
            content = file.read(head.file_size)
        manifest = Manifest.from_json(manifest_file.parse(content))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"its {MANIFEST} cannot be read: {error}", hint="do not use this bundle") from error
    size = sum(entry.bytes for entry in manifest.files())
    free = shutil.disk_usage(destination.parent).free
    if size > free - SPARE:
        raise BundleError(
            f"the bundle takes {format_size(size)}, and {destination.parent} has {format_size(free)} free",
            hint="free some space, or set XDG_CACHE_HOME to a larger disk",
        )
    with staging.create(destination) as folder:
        (folder / MANIFEST).write_bytes(content)
        if top + SIGNATURE in members:
            (folder / SIGNATURE).write_bytes(_small(archive, _member(members, top + SIGNATURE)))
        for entry in dict.fromkeys(manifest.files()):
            _write(archive, _member(members, top + entry.path), entry, folder)


def _top(members: dict[str, zipfile.ZipInfo]) -> str:
    """The folder of the manifest: the top, or the one that everything lies in, as a file manager makes it."""
    if MANIFEST in members:
        return ""
    tops = {name.partition("/")[0] for name in members if not name.startswith("__MACOSX/")}
    if len(tops) == 1 and (top := f"{tops.pop()}/") + MANIFEST in members:
        return top
    raise BundleError(f"the archive holds no bundle: it has no {MANIFEST}", hint="edge package BUNDLE --zip FILE.zip")


def _member(members: dict[str, zipfile.ZipInfo], name: str) -> zipfile.ZipInfo:
    if (found := members.get(name)) is None:
        raise BundleError(f"the archive lacks {name}", hint="fetch or write it again")
    if found.flag_bits & 1 or found.compress_type not in _METHODS:
        raise BundleError(f"{name} is encrypted, or packed in a way that is not read", hint="zip it with deflate")
    return found


def _small(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A signature, as far as one is read: whoever checks it refuses a longer one."""
    with archive.open(member) as file:
        return file.read(MOST_BYTES + 1)


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, entry: File, folder: Path) -> None:
    target = folder / entry.path
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), entry.bytes
    with archive.open(member) as source, target.open("xb") as file:
        while piece := source.read(min(_PIECE, left + 1)):
            left -= len(piece)
            if left < 0:
                break
            digest.update(piece)
            file.write(piece)
    if left:
        raise BundleError(
            f"{entry.path} has another size than its manifest says, {entry.bytes:,} bytes",
            hint="fetch or write the archive again",
        )
    require(entry, digest.hexdigest())
