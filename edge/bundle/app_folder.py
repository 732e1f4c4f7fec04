"""App folder: a bundle as the folder that the iOS demo embeds or imports, without what is there for other programs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from edge.bundle import staging
from edge.bundle.manifest import MANIFEST, Bundle, Part
from edge.errors import BundleError, UsageError

FORMATS = ("onnx", "coreml")  # that an engine of the app opens, each by itself
TARGET = (18, 0)  # the oldest iOS that the app runs on
LARGEST = 4 * 10**9  # bytes: what Apple lets an app have


def package(bundle: Bundle, destination: Path) -> int:
    """Hash all files, and write the folder aside; the size of its files in bytes.

    Raises BundleError when the bundle is damaged, and UsageError when the app cannot open it, or not on every system
    that it runs on, when it is larger than an app may be, or when something else is at the destination.
    """
    _require(bundle)
    bundle.check()
    with staging.create(destination) as folder:
        for path in (MANIFEST, *(file.path for file in bundle.manifest.own())):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / path, folder / path)
    return sum(file.stat().st_size for file in destination.rglob("*") if file.is_file())


def _require(bundle: Bundle) -> None:
    parts = bundle.manifest.parts
    for part in parts:
        if part.format not in FORMATS or part.format != parts[0].format:
            others = ", ".join(f"{_name(other)} in {other.format}" for other in parts)
            raise UsageError(
                f"no engine of the app opens {others}: one opens {' only, another '.join(FORMATS)} only",
                hint="edge export CHECKPOINT -o BUNDLE --recipe coreml-w8-w4",
            )
        least = _least(part)
        if least > TARGET:
            wanted, own = (".".join(map(str, version)) for version in (least, TARGET))
            raise UsageError(
                f"the {_name(part)} part needs iOS {wanted}, and the app runs on {own} and newer",
                hint="export it again, or raise iOS in ios_demo/project.yml and Package.swift",
            )
    size = sum(file.bytes for file in bundle.manifest.own())
    if size > LARGEST:
        raise UsageError(
            f"the bundle has {size:,} bytes, and an app may have {LARGEST:,}",
            hint="weights of 4 bits: edge export CHECKPOINT -o BUNDLE --recipe coreml-w8-w4",
        )


def _name(part: Part) -> str:
    return "+".join(part.covers)


def _least(part: Part) -> tuple[int, ...]:
    """The oldest iOS that the part says it needs; none where it says nothing."""
    minimum = part.details.get("minimum")
    told = minimum.get("ios") if isinstance(minimum, Mapping) else None
    if told is None:
        return ()
    try:
        return tuple(map(int, str(told).split(".")))
    except ValueError as error:
        raise BundleError(
            f"the {_name(part)} part needs iOS {told!r}, which is no version", hint="export the bundle again"
        ) from error
