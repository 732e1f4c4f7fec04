"""`edge package`: a bundle as one file for an app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge.cli.options import BundleArgument, Debug, Json
from edge.cli.output import print_json, say
from edge.units import format_size


def package(
    bundle: BundleArgument,
    android: Annotated[Path, typer.Option(metavar="ZIP", help="For the Android demo: what its Model button imports.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check a bundle, and write it as one file that an app imports."""
    from edge.bundle.archive import package as write
    from edge.bundle.manifest import Bundle

    opened = Bundle.open(bundle)
    written = write(opened, android)
    if as_json:
        print_json({"path": str(android), "bytes": written, "name": opened.manifest.name})
    else:
        say(f"{android}: {format_size(written)}")
