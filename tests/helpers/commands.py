"""The command line, called in this process or as another."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import Any

from edge import cli

MAIN = "from edge.cli import main; raise SystemExit(main())"  # for `python -c`


class Said:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def call(*arguments: object, typed: str = "") -> Said:
    """`edge ...` in this process."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.stdin = sys.stdin, io.StringIO(typed)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    finally:
        sys.stdin = before
    return Said(code, out.getvalue(), err.getvalue())
