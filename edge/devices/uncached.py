"""The warning that the user's cache does not serve: one line in a process, however much of it was wanted.

A full disk, a home that can only be read and a folder of another user's cost time, and never an answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edge.devices import host, once
from edge.errors import first_line

_COST = "every start hashes the bundle, packs its weights and computes the beginning of prompts anew"
_HINT = "set XDG_CACHE_HOME to a folder of yours with room"


@contextlib.contextmanager
def tolerated() -> Iterator[None]:
    """What goes wrong with the cache inside is warned of, and no error. That something is not kept yet is neither."""
    try:
        yield
    except FileNotFoundError:
        return
    except (OSError, RuntimeError) as error:
        warn(error)


def warn(error: Exception) -> None:
    """Of what the cache folder, or a user without a home, refused."""
    why = getattr(error, "strerror", None) or first_line(error)  # without the file: each would be a line of its own
    try:
        once.warn(f"the cache {host.cache_dir()} cannot be used: {why}; {_COST}; {_HINT}")
    except RuntimeError:
        once.warn(f"there is no cache: {why}; {_COST}; {_HINT}")


def damaged(what: str, then: str) -> None:
    """Of a file in the cache that is not what was written there, and what is done instead."""
    once.warn(f"{what} is damaged; {then}")
