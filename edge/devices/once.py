"""Warnings that a process gives once, however often their reason comes up, and whatever it is then.

Those of a child process go to its parent, which trusts none of them, and gives them as its own.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

_log = logging.getLogger(__name__)
_MOST = 1000  # that are remembered
_SAID: set[str] = set()
CHILDS = 100  # of one child
LETTERS = 1 << 13  # of one of them


def warn(message: str) -> None:
    """`what: why`; once of each what."""
    what = message.partition(": ")[0]
    if what not in _SAID and len(_SAID) < _MOST:
        _SAID.add(what)
        _log.warning("%s", message)


class Forwarded(logging.Handler):
    """In a child: what would be on stderr, if the parent did this work itself."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say
        self._left = CHILDS

    def emit(self, record: logging.LogRecord) -> None:
        if self._left:
            self._left -= 1
            with contextlib.suppress(OSError):  # nobody listens any more
                self._say(record.getMessage().encode(errors="replace").decode()[:LETTERS])


class Heard:
    """In the parent: of one child."""

    def __init__(self) -> None:
        self._left = CHILDS

    def take(self, text: object) -> None:
        """Warn of it in one line, with a space for whatever a terminal does not print. Raises ValueError on what is no
        warning, or one too many."""
        if not self._left:
            raise ValueError(f"more than {CHILDS} warnings")
        self._left -= 1
        if not isinstance(text, str) or len(text) > LETTERS:
            raise ValueError(f"a warning that is no text of {LETTERS:,} letters at most")
        warn("".join(letter if letter.isprintable() else " " for letter in text))
