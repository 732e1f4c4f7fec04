"""Download of one file over HTTP: bounded, and gone on with where an earlier one was cut off (RFC 9110, 13 and 14)."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult, urlsplit

from edge.errors import BundleError, UsageError
from edge.units import format_size

TIMEOUT = 30  # seconds without a byte
SPARE = 64 << 20  # bytes of a disk that are left free
_PIECE = 1 << 20
_LOCAL = ("localhost", "127.0.0.1", "::1")


def require_safe(address: str) -> SplitResult:
    """Raises UsageError on an address that is not https, but for one of this machine itself."""
    try:
        split = urlsplit(address)
        host = split.hostname
    except ValueError as error:
        raise UsageError(f"{address!r} is no address: {error}", hint="https://HOST/BUNDLE.zip") from error
    if not host or not (split.scheme == "https" or (split.scheme == "http" and host in _LOCAL)):
        raise UsageError(
            f"{address!r} is no https address: whoever is on the way could put another file in its place",
            hint="https://HOST/BUNDLE.zip, or fetch it yourself and give the file",
        )
    return split


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        require_safe(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(address: str, place: Path, told: Callable[[str], None]) -> None:
    """Write what lies at an address to `place`, whose folder exists; what was there of it already is kept, if the
    server says that it is still of the same file.

    Raises BundleError where it cannot be had whole, and UsageError on an address that is not https. What came is kept
    for the next time.
    """
    require_safe(address)
    notes = place.with_name(place.name + ".json")
    begun = _begun(place, notes, address)
    request = urllib.request.Request(address, headers={"User-Agent": "edge-vlm", "Accept-Encoding": "identity"})
    if begun:
        request.add_header("Range", f"bytes={place.stat().st_size}-")
        request.add_header("If-Range", begun)
    try:
        with urllib.request.build_opener(_Redirects()).open(request, timeout=TIMEOUT) as answer:
            _receive(answer, address, place, notes, told)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:  # what is here is no beginning of it
            _forget(place, notes)
        raise BundleError(
            f"{address} cannot be had: the server answers {error.code} {error.reason}", hint="is it spelled right?"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise BundleError(
            f"{address} cannot be had: {reason}",
            hint="repeat: it goes on where it was cut off" if place.is_file() else "is there a network?",
        ) from error


def _begun(place: Path, notes: Path, address: str) -> str:
    """How the server named the version of what is here in part; empty where nothing is, or it named none."""
    try:
        said = json.loads(notes.read_bytes())
        if said["address"] == address and place.stat().st_size > 0:
            return str(said["version"])
    except (OSError, ValueError, LookupError, TypeError):
        pass  # it begins anew
    _forget(place, notes)
    return ""


def _forget(*files: Path) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _receive(answer: Any, address: str, place: Path, notes: Path, told: Callable[[str], None]) -> None:
    goes_on = answer.status == http.client.PARTIAL_CONTENT
    start = place.stat().st_size if goes_on else 0
    if goes_on and not str(answer.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
        raise BundleError(f"{address}: the server sends another part than was asked for", hint="repeat")
    length = answer.headers.get("Content-Length", "")
    if not length.isdecimal():
        raise BundleError(f"{address}: the server does not say how long it is", hint="fetch it yourself, give the file")
    left, whole = int(length), start + int(length)
    free = shutil.disk_usage(place.parent).free
    if left > free - SPARE:
        raise BundleError(
            f"{address} has {format_size(whole)}, and the disk of {place.parent} has {format_size(free)} free",
            hint="free some space, or set XDG_CACHE_HOME to a larger disk",
        )
    told(f"fetching {address}: {format_size(whole)}" + (f", {format_size(start)} of it here" if start else ""))
    version = _version(answer.headers)
    notes.write_text(json.dumps({"address": address, "version": version}), encoding="utf-8")
    with place.open("ab" if goes_on else "wb") as file:
        while left:
            piece = answer.read(min(_PIECE, left))
            if not piece:
                raise http.client.IncompleteRead(b"", left)
            file.write(piece)
            left -= len(piece)
        file.flush()
        os.fsync(file.fileno())
    notes.unlink()


def _version(headers: Any) -> str:
    """What names exactly these bytes: a strong ETag. A date may be that of two files."""
    tag = str(headers.get("ETag", ""))
    return tag if tag.startswith('"') else ""


def require_digest(place: Path, expected: str) -> None:
    """Raises BundleError, and removes the file, where its sha256 is another than the address says."""
    with place.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        place.unlink()
        raise BundleError(
            f"what was fetched has sha256 {found[:12]}…, and the address says {expected[:12]}…",
            hint="repeat; ask whoever gave the address",
        )
