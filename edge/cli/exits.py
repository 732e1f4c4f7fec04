"""Exits of a command: a missing extra, and a kill that must clean up."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from edge.errors import EngineError


def export_side() -> contextlib.AbstractContextManager[None]:
    return requires_extra("exporting", "export")


@contextlib.contextmanager
def requires_extra(what: str, extra: str) -> Iterator[None]:
    """What runs inside needs the libraries of that extra."""
    try:
        yield
    except ImportError as error:
        own = (error.name or "").split(".")[0] in ("edge", "exporters")
        if own and error.name != "exporters":  # a fault of ours; only the whole side may be left out
            raise
        raise EngineError(
            f"{what} needs more than is installed: {error}", hint=f"pip install 'edge-vlm[{extra}]'"
        ) from error


@contextlib.contextmanager
def cleanup_on_signal() -> Iterator[None]:
    """A kill ends what runs inside as an exit does: what is half written is removed."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    ours = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]  # nohup stays nohup
    for number in ours:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
