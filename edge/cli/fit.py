"""`edge fit`: predicts memory and speed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edge import plugins
from edge.cli.exits import export_side
from edge.cli.options import Base, Cache, Debug, Json, Mmproj
from edge.cli.output import print_json, print_rich
from edge.errors import EngineError

if TYPE_CHECKING:
    from edge.bundle.manifest import Manifest
    from edge.planning.fit import Fit


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
    """Predict memory, first token and speed on a device; refuse what does not fit, naming what would.

    Of a checkpoint without --recipe, --format and --scheme, a device's other recipes are compared with its own.
    """
    from edge.bundle.manifest import MANIFEST, Bundle
    from edge.cli import render
    from edge.devices import THIS, measured, profile
    from edge.engines import matmul_lender
    from edge.planning import fit as planning

    target = measured(profile(device or THIS), matmul_lender)

    def foreseen(recipe: str) -> Manifest:
        with export_side():
            manifest: Manifest = plugins.load("exporters", "preview").foresee(
                model,
                recipe,
                format,
                tuple(scheme or ()),
                vision_tower=vision_tower,
                mmproj=mmproj,
                base=base,
            )
        return manifest

    def predicted(manifest: Manifest) -> Fit:
        return planning.fit(manifest, target, context=context, cache=cast("Any", cache))

    if Path(model, MANIFEST).is_file():
        found = predicted(Bundle.open(model).manifest)
        print_json(found.to_json()) if as_json else print_rich(render.fit(found))
        return
    found = predicted(foreseen(recipe or target.recipe))
    others = {} if recipe or format or scheme else _others(target.alternatives, lambda name: predicted(foreseen(name)))
    named = {target.recipe: found, **others}
    best = planning.better({name: one for name, one in named.items() if not isinstance(one, EngineError)})
    if as_json:
        told = {
            name: {"fits": False} if isinstance(one, EngineError) else one.to_json() for name, one in others.items()
        }
        print_json({**found.to_json(), **({"alternatives": told, "better": best} if others else {})})
        return
    print_rich(render.fit(found))
    if others:
        print_rich(render.compared(named, best))


def _others(names: Iterable[str], predict: Callable[[str], Fit]) -> dict[str, Fit | EngineError]:
    """Recipe -> how it fits, or why it does not."""
    found: dict[str, Fit | EngineError] = {}
    for name in names:
        try:
            found[name] = predict(name)
        except EngineError as error:
            found[name] = error
    return found
