"""`edge export`: turns a checkpoint into a bundle, with progress and proof on the screen."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edge import plugins
from edge.cli.exits import cleanup_on_signal, export_side
from edge.cli.options import Base, Debug, ImageTokens, Json, Mmproj, Threads
from edge.cli.output import print_json, print_rich, say, write
from edge.recipes import QUANTIZERS
from edge.units import format_size, parse_size

FORMATS = "exporters.formats"


def command() -> Callable[..., None]:
    """`export` with an option for each that a format declares; none where the export side is not installed."""

    @functools.wraps(export)
    def found(**given: Any) -> None:
        export(**given)

    own = [p for p in inspect.signature(export, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    found.__signature__ = inspect.Signature([*own, *_parameters()])  # type: ignore[attr-defined]
    return found


def _format_options() -> dict[str, Mapping[str, Any]]:
    """format -> option -> what `exporters.formats` says of it."""
    declared = {name: plugins.facts(FORMATS, name).get("OPTIONS") for name in plugins.names(FORMATS)}
    return {name: options for name, options in declared.items() if options}


def _parameters() -> Iterator[inspect.Parameter]:
    """As typer reads them off a function: a default of False is a flag's, () of what may be given several times."""
    for format, options in _format_options().items():
        for name, facts in options.items():
            shown = typer.Option(
                "--" + name.replace("_", "-"),
                metavar=facts.get("metavar"),
                help=facts["help"],
                rich_help_panel=f"Options of {format}",
            )
            flag = facts["default"] is False
            kind: Any = bool if flag else list[str]
            yield inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=False if flag else [],
                annotation=Annotated[kind, shown],
            )


def export(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A folder, a hub id, or a GGUF file.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="BUNDLE", help="Where the bundle is written.")],
    format: Annotated[str | None, typer.Option(help="onnx, gguf, tflite, …: a wrong name lists all.")] = None,
    scheme: Annotated[list[str] | None, typer.Option(metavar="S|ROLE=S", help="How numbers are stored.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME|BUNDLE", help="Format and scheme for each role: a name, or a bundle that has them."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="A device of `edge devices`: its recipe.")] = None,
    calib: Annotated[Path | None, typer.Option(metavar="DIR", help="Pictures and questions to calibrate with.")] = None,
    imatrix: Annotated[Path | None, typer.Option(metavar="FILE", help="An importance matrix: no measuring.")] = None,
    quantize: Annotated[
        str | None,
        typer.Option(metavar="|".join(QUANTIZERS), help="How a decoder's 4-bit weights are found; gptq needs --calib."),
    ] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Positions to export for; the checkpoint's own.")] = None,
    image_tokens: ImageTokens = None,
    vision_tower: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the vision tower lies.")] = None,
    mmproj: Mmproj = None,
    vision: Annotated[
        str | None,
        typer.Option(metavar="CKPT", help="Keep the GGUF decoder as it is; the vision part is this checkpoint's."),
    ] = None,
    base: Base = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="The prompt it learned: a published one, a .jinja, or JSON.")
    ] = None,
    threads: Threads = 0,
    max_loss: Annotated[float | None, typer.Option(help="Fail when quantising costs more (1 - cosine).")] = None,
    target_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Wider layers where they help most, up to 1.0GB of files.")
    ] = None,
    max_ram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="The same, up to 1.5GB of memory as `edge fit` predicts it.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show what quantising costs each linear.")] = False,
    as_json: Json = False,
    debug: Debug = False,
    **options: Any,
) -> None:
    """Turn a checkpoint into a bundle, and prove that it computes the same model."""
    from rich.console import Console

    from edge.bundle import vouching
    from edge.cli import render

    with export_side(), cleanup_on_signal():
        side = plugins.load("exporters", "export")
        request = side.ExportRequest(
            checkpoint=checkpoint,
            output=output,
            format=format,
            schemes=tuple(scheme or ()),
            recipe=recipe,
            device=device,
            calib=calib,
            imatrix=imatrix,
            context=context,
            image_tokens=image_tokens,
            vision_tower=vision_tower,
            mmproj=mmproj,
            vision=vision,
            base=base,
            threads=threads,
            options={
                format: {name: type(facts["default"])(options[name]) for name, facts in declared.items()}
                for format, declared in _format_options().items()
            },
            max_loss=max_loss,
            explain=explain,
            target_size=parse_size(target_size) if target_size else None,
            max_ram=parse_size(max_ram) if max_ram else None,
            prompt=prompt,
            quantize=quantize,
        )
        with render.Stages(console=Console(stderr=True)) as stages:
            done = (plugins.load("exporters", "adopt") if vision else side).export(request, stages.report)
    vouching.remember(done.path, "edge export")
    for note in done.notes:
        say(f"note: {note}")
    costs = {role: cost.to_json() for role, cost in done.costs.items()}
    if as_json:
        facts = {"path": str(done.path), "bytes": done.bytes, "seconds": round(done.seconds, 3)}
        facts["fit"] = done.fit.to_json() if done.fit else None
        facts |= {"prompt": done.prompt, "notes": list(done.notes)}
        facts["costs"] = costs
        print_json({**facts, "report": done.report.to_json(), "next_command": done.next_command})
        return
    print_rich(render.parity(done.report))
    for role, cost in costs.items():
        if explain:
            print_rich(render.costs(role, cost))
    write(f"\n{done.path}: {format_size(done.bytes)} in {done.seconds:.1f} s")
    write(f"worst: {render.worst(done.report)}")
    for role, cost in costs.items():
        if cost["widened"]:
            write(render.widened(role, cost))
    write(f"prompt: {done.prompt}")
    if done.fit:
        write(f"predicted, not measured: {render.fit_line(done.fit)}")
    write(f"next: {done.next_command}")
