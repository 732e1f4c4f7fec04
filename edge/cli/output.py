"""Output: data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from edge.errors import EdgeError

if TYPE_CHECKING:
    from rich.console import RenderableType


def print_rich(renderable: RenderableType) -> None:
    from rich.console import Console

    # No markup: a manifest's words are not ours.
    Console(markup=False, emoji=False, highlight=False).print(renderable)


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=1, ensure_ascii=False), flush=True)


def complain(error: EdgeError) -> None:
    say(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
