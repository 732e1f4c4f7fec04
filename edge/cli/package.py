"""`edge package`: a bundle as an app takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge.cli.options import BundleArgument, Debug, Json
from edge.cli.output import print_json, say
from edge.units import format_size


def package(
    bundle: BundleArgument,
    android: Annotated[
        Path | None, typer.Option(metavar="ZIP", help="For the Android demo: what its Model button imports.")
    ] = None,
    ios: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For the iOS demo: what it imports through Files, or embeds.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check a bundle, and write it as an app takes it: --android ZIP or --ios FOLDER."""
    from edge.bundle import app_folder, archive
    from edge.bundle.manifest import Bundle
    from edge.errors import UsageError

    opened = Bundle.open(bundle)
    if android is not None and ios is None:
        place, written = android, archive.package(opened, android)
    elif ios is not None and android is None:
        place, written = ios, app_folder.package(opened, ios)
    else:
        raise UsageError("a bundle is packaged for one app at a time", hint=f"edge package {bundle} --ios FOLDER")
    if as_json:
        print_json({"path": str(place), "bytes": written, "name": opened.manifest.name})
    else:
        say(f"{place}: {format_size(written)}")
