"""`edge fit`: predicts memory and speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from edge import plugins
from edge.cli.exits import export_side
from edge.cli.options import Base, Cache, Debug, Json, Mmproj
from edge.cli.output import print_json, print_rich


def fit(
    model: Annotated[str, typer.Argument(metavar="BUNDLE|CHECKPOINT", help="A bundle, or what `edge export` takes.")],
    device: Annotated[str | None, typer.Option("--device", help="One of `edge devices`; this machine.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Of a checkpoint: instead of the device's.")] = None,
    format: Annotated[str | None, typer.Option(help="Of a checkpoint, as for `edge export`.")] = None,
    scheme: Annotated[list[str] | None, typer.Option(metavar="S|ROLE=S", help="Of a checkpoint.")] = None,
    context: Annotated[int, typer.Option(min=0, help="Positions; 0: the model's, or what the memory holds.")] = 0,
    cache: Cache = None,
    vision_tower: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the vision tower lies.")] = None,
    mmproj: Mmproj = None,
    base: Base = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Predict memory, first token and speed on a device; refuse what does not fit, naming what would."""
    from edge.bundle.manifest import MANIFEST, Bundle
    from edge.cli import render
    from edge.devices import THIS, measured, profile
    from edge.engines import matmul_lender
    from edge.planning import fit as planning

    target = measured(profile(device or THIS), matmul_lender)
    if Path(model, MANIFEST).is_file():
        manifest = Bundle.open(model).manifest
    else:
        with export_side():
            manifest = plugins.load("exporters", "preview").foresee(
                model,
                recipe or target.recipe,
                format,
                tuple(scheme or ()),
                vision_tower=vision_tower,
                mmproj=mmproj,
                base=base,
            )
    found = planning.fit(manifest, target, context=context, cache=cast("Any", cache))
    print_json(found.to_json()) if as_json else print_rich(render.fit(found))
