"""Output: data to stdout, everything else to stderr. Words of bundles, models and other machines do not steer the
terminal: what would is left out here, and nowhere else."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge.errors import EdgeError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

# Control characters but for line breaks and tabs, halves of surrogate pairs, and what turns the direction of writing.
_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """The text with a space for each character that a terminal would obey."""
    return _STEERS.sub(" ", text)


def print_rich(renderable: RenderableType) -> None:
    from rich.console import Console

    # No markup: a manifest's words are not ours.
    Console(markup=False, emoji=False, highlight=False).print(Plain(renderable))


@dataclass(frozen=True)
class Plain:
    """What rich makes of something, in plain characters."""

    renderable: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        for segment in console.render(self.renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)


def print_json(data: Any) -> None:
    text = json.dumps(data, indent=1, ensure_ascii=False)
    print(_STEERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text), flush=True)


def write(text: str, *, end: str = "\n") -> None:
    """Data that is no JSON."""
    print(plain(text), end=end, flush=True)


def write_answer(text: str) -> None:
    """A piece of an answer: to a program as the model said it."""
    print(plain(text) if sys.stdout.isatty() else text, end="", flush=True)


def complain(error: EdgeError) -> None:
    say(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))


def say(text: str) -> None:
    print(plain(text), file=sys.stderr, flush=True)
