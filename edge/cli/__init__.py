"""The command line, one file per command. Exit codes: 0 fine, 1 failed, 2 the call was wrong."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence

import typer

from edge.cli import (
    bench,
    devices,
    doctor,
    eval,
    export,
    fit,
    guard,
    inspect,
    package,
    report,
    run,
    serve,
    tune,
    verify,
)
from edge.cli.output import complain, say
from edge.errors import EdgeError


def app() -> typer.Typer:
    """The commands in the order of their help."""
    commands = (
        export.command(),
        run.run,
        serve.serve,
        verify.verify,
        bench.bench,
        tune.tune,
        guard.guard,
        eval.eval,
        report.report,
        inspect.inspect,
        devices.devices,
        fit.fit,
        package.package,
        doctor.doctor,
    )
    found = typer.Typer(name="edge", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    for command in commands:
        found.command()(command)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of a failure; leaves by SystemExit otherwise, as typer does."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in given
    if debug:
        logging.basicConfig(level=logging.DEBUG)
    try:
        app()(args=given, prog_name="edge")
    except EdgeError as error:
        if debug:
            traceback.print_exc()
        complain(error)
        return error.exit_code
    except Exception as error:
        if debug:
            traceback.print_exc()
        say(f"error: {type(error).__name__}: {error}\nhint: this is a bug in edge-vlm; --debug shows where")
        return 1
    return 0
