"""Archive: a bundle as one zip, which is run as a folder is, and which the Android demo imports."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path

from edge.bundle.manifest import MANIFEST, NUMBERS, Bundle, File
from edge.bundle.signature import SIGNATURE
from edge.devices import whole_files
from edge.errors import BundleError, EdgeError, UsageError

FORMATS = ("onnx",)  # of parts that the app's engine opens
MAPPED = 2**31 - 1  # bytes: what a JVM maps of one file
_PIECE = 1 << 20


def package(bundle: Bundle, destination: Path) -> int:
    """Hash all files, write the zip aside, and rename it; its size in bytes. Raises BundleError when the bundle is
    damaged."""
    return _package(bundle, bundle.manifest.files(), destination)


def package_for_android(bundle: Bundle, destination: Path) -> int:
    """As `package`, without what is there for other programs. Raises UsageError too, when the app cannot open it."""
    _require(bundle)
    return _package(bundle, bundle.manifest.own(), destination)


def _package(bundle: Bundle, entries: Iterable[File], destination: Path) -> int:
    bundle.check()
    try:
        with whole_files.aside(destination) as beside:
            _write(bundle, entries, beside)
        return destination.stat().st_size
    except OSError as error:
        raise EdgeError(f"cannot write {destination}: {error}", hint="check the path, and the room there") from error


def _require(bundle: Bundle) -> None:
    for part in bundle.manifest.parts:
        name = "+".join(part.covers)
        if part.format not in FORMATS:
            raise UsageError(
                f"the {name} part is {part.format}, and the app opens {', '.join(FORMATS)}",
                hint="edge export CHECKPOINT -o BUNDLE --recipe balanced",
            )
        for file in part.files:
            if file.path.endswith(".npy") and file.bytes > MAPPED:
                raise BundleError(
                    f"{file.path} has {file.bytes:,} bytes, and Android maps {MAPPED:,} of a file",
                    hint="export with an embedding table of 8 bits: --scheme decoder=w4",
                )


def _write(bundle: Bundle, entries: Iterable[File], place: Path) -> None:
    with zipfile.ZipFile(place, "w") as archive:
        for name in (MANIFEST, SIGNATURE):
            if (bundle.path / name).is_file():
                archive.write(bundle.path / name, name, zipfile.ZIP_DEFLATED)
        for file in dict.fromkeys(entries):
            entry = zipfile.ZipInfo(file.path)
            # Numbers are noise to a compressor.
            entry.compress_type = zipfile.ZIP_STORED if file.path.endswith(NUMBERS) else zipfile.ZIP_DEFLATED
            entry.file_size = file.bytes  # a large one needs a longer head
            with bundle.file(file).open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, _PIECE)
