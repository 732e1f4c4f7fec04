"""`edge report`: draws benchmark results as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge import plugins
from edge.cli.exits import requires_extra
from edge.cli.options import Debug
from edge.cli.output import say


def report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS", help="What `edge bench --save` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page.")],
    bandwidth: Annotated[
        float | None, typer.Option(min=0.1, metavar="GB/s", help="The memory's, where the results do not tell.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Draw results of `edge bench` as one page that opens anywhere."""
    from edge.bench.results import read

    found = {str(path): read(path) for path in results}
    with requires_extra("drawing", "report"):
        side = plugins.load("exporters", "report")
    side.write(found, output, bandwidth and bandwidth * 1e9)
    say(f"written: {output}")
