"""`edge inspect`: what is in a bundle."""

from __future__ import annotations

from edge.cli.options import BundleArgument, Debug, Json
from edge.cli.screen import print_json, render


def inspect(bundle: BundleArgument, as_json: Json = False, debug: Debug = False) -> None:
    """Print the manifest readably."""
    from edge import show
    from edge.bundle import Bundle

    manifest = Bundle.open(bundle).manifest
    if as_json:
        print_json(manifest.to_json())
    else:
        render(show.manifest(manifest))
