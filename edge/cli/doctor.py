"""`edge doctor`: diagnoses this machine, or GGUF files."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from edge import plugins
from edge.cli.exits import cleanup_on_signal, export_side
from edge.cli.options import Debug, Json
from edge.cli.output import print_json, print_rich, say
from edge.errors import BundleError, UsageError


def doctor(
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILE.gguf", show_default=False)] = None,
    repair: Annotated[Path | None, typer.Option(metavar="OUT", help="Write corrected copies of the files.")] = None,
    mtmd_position_workaround: Annotated[
        bool,
        typer.Option("--mtmd-position-workaround", help="With --repair: for llama.cpp builds without #25844 only."),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say which engines are installed, what the processor can do, and what to install.

    With a GGUF decoder, an mmproj or both: say what is wrong with them, what it costs, and correct it.
    """
    if files:
        _examine(files, repair, mtmd_position_workaround, as_json)
        return
    if repair or mtmd_position_workaround:
        raise UsageError("there is no file to repair", hint="edge doctor MODEL.gguf MMPROJ.gguf --repair OUT")
    from edge.cli import render
    from edge.doctor import diagnose

    found = diagnose()
    if as_json:
        print_json(found.to_json())
    else:
        print_rich(render.doctor(found))


def _examine(files: list[Path], repair: Path | None, position_workaround: bool, as_json: bool) -> None:
    from edge.cli import render

    if position_workaround and not repair:
        raise UsageError("--mtmd-position-workaround is written into a copy", hint="add --repair OUT")
    with export_side(), cleanup_on_signal():
        side = plugins.load("exporters.gguf", "doctor")
        found = side.repair(files, repair, position_workaround) if repair else side.diagnose(files)
    if as_json:
        print_json(found.to_json())
    else:
        print_rich(render.findings(found))
    if wrong := [row for row in found.rows if row.status == "wrong"]:
        lost = [row.cost for row in wrong if not row.repairable]
        command = shlex.join(["edge", "doctor", *map(str, files), "--repair", "OUT"])
        raise BundleError(f"wrong: {', '.join(row.check for row in wrong)}", hint=lost[0] if lost else command)
    if found.written:
        say("written: " + ", ".join(found.written))
