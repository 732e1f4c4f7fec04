"""`edge package`: a bundle as an archive, as a hub takes it, or as an app does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge.cli.options import BundleArgument, Debug, Json
from edge.cli.output import print_json, say
from edge.units import format_size


def package(
    bundle: BundleArgument,
    as_zip: Annotated[
        Path | None, typer.Option("--zip", metavar="FILE", help="One archive, which is run as it is.")
    ] = None,
    hub: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="What one uploads to a model hub, its card too.")
    ] = None,
    android: Annotated[
        Path | None, typer.Option(metavar="ZIP", help="For the Android demo: what its Model button imports.")
    ] = None,
    ios: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For the iOS demo: what it imports through Files, or embeds.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check a bundle, and write it as another place takes it: an archive, a hub, an app."""
    from edge.bundle import app_folder, archive, hub_folder
    from edge.bundle.manifest import Bundle
    from edge.errors import UsageError

    ways = (
        (as_zip, archive.package),
        (hub, hub_folder.package),
        (android, archive.package_for_android),
        (ios, app_folder.package),
    )
    wanted = [(place, write) for place, write in ways if place is not None]
    if len(wanted) != 1:
        raise UsageError("a bundle is packaged for one place at a time", hint=f"edge package {bundle} --zip FILE.zip")
    (place, write), opened = wanted[0], Bundle.open(bundle)
    written = write(opened, place)
    if as_json:
        print_json({"path": str(place), "bytes": written, "name": opened.manifest.name})
    else:
        say(f"{place}: {format_size(written)}")
