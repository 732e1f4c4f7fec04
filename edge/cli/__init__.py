"""The command line, one file per command. Exit codes: 0 fine, 1 failed, 2 the call was wrong."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence

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

_COMMANDS: Mapping[str, Callable[[], Callable[..., None]]] = {  # in the order of their help
    "export": export.command,
    "run": lambda: run.run,
    "serve": lambda: serve.serve,
    "verify": lambda: verify.verify,
    "bench": lambda: bench.bench,
    "tune": lambda: tune.tune,
    "guard": lambda: guard.guard,
    "eval": lambda: eval.eval,
    "report": lambda: report.report,
    "inspect": lambda: inspect.inspect,
    "devices": lambda: devices.devices,
    "fit": lambda: fit.fit,
    "package": lambda: package.package,
    "doctor": lambda: doctor.doctor,
}


def app(only: str = "") -> typer.Typer:
    """All commands; one of them where its name is given: making the others of their functions is a tenth of a start."""
    found = typer.Typer(name="edge", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
    found.callback()(lambda: None)  # or a single command would lose its name
    for name in [only] if only in _COMMANDS else _COMMANDS:
        found.command(name)(_COMMANDS[name]())
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of a failure; leaves by SystemExit otherwise, as typer does."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in given
    if debug:
        logging.basicConfig(level=logging.DEBUG)
    try:
        app(given[0] if given else "")(args=given, prog_name="edge")
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
