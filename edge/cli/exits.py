"""How a command ends that lacks a library, or is killed."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from edge.errors import EngineError


def export_side() -> contextlib.AbstractContextManager[None]:
    return needing("exporting", "export")


@contextlib.contextmanager
def needing(what: str, extra: str) -> Iterator[None]:
    """What runs inside needs the libraries of that extra."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").split(".")[0] in ("edge", "exporters"):
            raise
        raise EngineError(
            f"{what} needs more than is installed: {error}", hint=f"pip install 'edge-vlm[{extra}]'"
        ) from error


@contextlib.contextmanager
def leaving_tidily() -> Iterator[None]:
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
