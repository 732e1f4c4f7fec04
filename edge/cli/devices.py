"""`edge devices`: lists the device profiles, or shows one with its sources."""

from __future__ import annotations

from typing import Annotated

import typer

from edge.cli.options import Debug, Json
from edge.cli.output import print_json, print_rich


def devices(
    name: Annotated[str | None, typer.Argument(metavar="DEVICE", help="One of them; `this`: measure it.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the devices that `edge export --device` knows, and this machine; or show one, with its sources."""
    from edge.cli import render
    from edge.devices import detect, measured, profile, profiles
    from edge.engines import matmul_lender

    if name is not None:
        one = measured(profile(name), matmul_lender)
        print_json(one.to_json()) if as_json else print_rich(render.device(one))
    elif as_json:
        print_json({"devices": [p.to_json() for p in profiles()], "this": detect().to_json()})
    else:
        print_rich(render.devices(profiles(), detect()))
