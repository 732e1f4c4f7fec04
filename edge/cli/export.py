"""`edge export`: turns a checkpoint into a bundle, with progress and proof on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge import plugins
from edge.cli.exits import cleanup_on_signal, export_side
from edge.cli.options import Debug, Json, Mmproj, PositionWorkaround, Threads
from edge.cli.output import print_json, print_rich, say
from edge.units import format_size


def export(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A folder, a hub id, or a GGUF file.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="BUNDLE", help="Where the bundle is written.")],
    format: Annotated[str | None, typer.Option(help="onnx, gguf, tflite, coreml, executorch.")] = None,
    scheme: Annotated[list[str] | None, typer.Option(metavar="S|ROLE=S", help="How numbers are stored.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A named choice of format and scheme for each role.")] = None,
    device: Annotated[str | None, typer.Option(help="A device of `edge devices`: its recipe.")] = None,
    calib: Annotated[Path | None, typer.Option(metavar="DIR", help="Pictures and questions to calibrate with.")] = None,
    imatrix: Annotated[Path | None, typer.Option(metavar="FILE", help="An importance matrix: no measuring.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Positions to export for; the checkpoint's own.")] = None,
    vision_tower: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the vision tower lies.")] = None,
    mmproj: Mmproj = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="The prompt it learned: a published one, or JSON.")
    ] = None,
    gguf_only: Annotated[
        bool, typer.Option("--gguf-only", help="Without the vision part that `edge run` uses.")
    ] = False,
    mtmd_position_workaround: PositionWorkaround = False,
    tensor_type: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN=KIND", help="A kind for tensors of the decoder's GGUF file.")
    ] = None,
    ane: Annotated[bool, typer.Option("--ane", help="Core ML in the form that the neural engine likes.")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="Core ML packages compiled too; on a Mac.")] = False,
    split: Annotated[bool, typer.Option("--split", help="An ExecuTorch program for each half, not one.")] = False,
    backend: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="coreml, mps, vulkan: ExecuTorch's encoder for it, too.")
    ] = None,
    threads: Threads = 0,
    max_loss: Annotated[float | None, typer.Option(help="Fail when quantising costs more (1 - cosine).")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn a checkpoint into a bundle, and prove that it computes the same model."""
    from rich.console import Console

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
            vision_tower=vision_tower,
            mmproj=mmproj,
            threads=threads,
            options={
                "gguf": {
                    "gguf_only": gguf_only,
                    "mtmd_position_workaround": mtmd_position_workaround,
                    "tensor_type": tuple(tensor_type or ()),
                },
                "coreml": {"ane": ane, "compile": compile},
                "executorch": {"split": split, "backend": tuple(backend or ())},
            },
            max_loss=max_loss,
            prompt=prompt,
        )
        with render.Stages(console=Console(stderr=True)) as stages:
            done = side.export(request, stages.report)
    for note in done.notes:
        say(f"note: {note}")
    if as_json:
        facts = {"path": str(done.path), "bytes": done.bytes, "seconds": round(done.seconds, 3)}
        facts["fit"] = done.fit.to_json() if done.fit else None
        facts["notes"] = list(done.notes)
        print_json({**facts, "report": done.report.to_json(), "next_command": done.next_command})
        return
    print_rich(render.parity(done.report))
    print(f"\n{done.path}: {format_size(done.bytes)} in {done.seconds:.1f} s")
    print(f"worst: {render.worst(done.report)}")
    if done.fit:
        print(f"predicted, not measured: {render.fit_line(done.fit)}")
    print(f"next: {done.next_command}")
