"""`edge inspect`: prints a manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edge.cli.options import BundleArgument, Debug, Json
from edge.cli.output import print_json, print_rich


def inspect(
    bundle: BundleArgument,
    placement: Annotated[
        bool, typer.Option("--placement", help="Which processor runs each operation: Core ML, CUDA.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the manifest readably."""
    from edge.bundle.manifest import MANIFEST, Bundle
    from edge.cli import render

    opened = Bundle.open(bundle)
    manifest = opened.manifest
    if placement:
        from edge.planning.placement import placements, to_json

        found = placements(opened)
        print_json(to_json(found)) if as_json else print_rich(render.placements(found))
    elif as_json:
        print_json(json.loads((opened.path / MANIFEST).read_bytes()))  # as it is, whatever its schema
    else:
        print_rich(render.manifest(manifest, _trust(bundle)))


def _trust(bundle: Path) -> dict[str, str]:
    """Who signed it, and who vouches for it."""
    from edge.bundle import signature, trusted_keys, vouching

    keys = trusted_keys.read()
    facts = {}
    if (found := signature.signed(bundle, keys)) is not None:
        known = f": {found.comment}" if found.trusted else f", which is not in {trusted_keys.place()}"
        facts["signed by"] = f"{found.key}{known}"
    return {**facts, "vouched for by": vouching.voucher(bundle, keys) or "nothing: it runs in a process of its own"}
