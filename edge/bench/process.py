"""The measuring process as the runner has it: started, heard within bounds, and ended.

Of a bundle that nothing vouches for it is bounded as an isolated one is (`edge.isolation`): what it may take, how long
it may be silent, and that it says measurements only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

from edge.bench.request import Request
from edge.devices import once
from edge.errors import EngineError

SILENCE = 600.0  # seconds without an event, where it is bounded; a replay says nothing until it ends
_REPLAY = 6 * SILENCE
_LOOK = 1.0  # seconds from one look at the clock to the next
_LINE = 1 << 20  # letters of an event
_MOST = 1 << 19  # events, where it is bounded
Event = dict[str, Any]
_NEW_GROUP: dict[str, Any] = (
    {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    if sys.platform == "win32"
    else {"process_group": 0}
)


@contextlib.contextmanager
def started(request: Request) -> Iterator[subprocess.Popen[str]]:
    """It is no part of the terminal's foreground: Ctrl-C is ours to hear, and however we leave, it ends."""
    path = os.pathsep.join(str(Path(entry or ".").absolute()) for entry in sys.path)
    command = [sys.executable, "-P", "-m", "edge.bench", request.to_text()]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if request.bounded and not request.debug else None,
        env={**os.environ, "PYTHONPATH": path},
        encoding="utf-8",
        **_NEW_GROUP,
    )
    with child:
        try:
            yield child
        except BaseException:
            _kill(child)
            raise


def events(child: subprocess.Popen[str], request: Request) -> Iterator[Event]:
    """Raises EngineError where it dies, and, if it is bounded, where it hangs or says what is no event."""
    silence = (_REPLAY if request.purpose == "prove" else SILENCE) if request.bounded else None
    warnings, told = once.Heard(), False
    with _Patience(child, silence) as patience:
        for count, event in enumerate(_read(child)):
            patience.heard()
            with understood():
                if event["event"] == "warning":
                    warnings.take(event.get("text"))
                    continue
                if request.bounded and count >= _MOST:
                    raise ValueError(f"more than {_MOST:,} events")
            told = told or event["event"] == "error"
            yield event
    if patience.ended:
        raise EngineError(
            f"the measuring process said nothing for {silence:g} s, and was ended",
            hint=f"edge verify {request.bundle}: for what it vouches for, edge bench waits as long as it takes",
        )
    if (code := child.wait()) and not told:
        killed = code == -getattr(signal, "SIGKILL", 9)
        raise EngineError(
            f"the measuring process ended by {signal.Signals(-code).name if code < 0 else f'exit code {code}'}",
            hint="the memory was too small, most likely: export with a smaller --scheme" if killed else "add --debug",
        )


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """What is read of an event inside may not be what it should be: EngineError."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise EngineError(
            f"the measuring process said what is no measurement: {type(error).__name__}: {error}",
            hint="do not use this bundle, if you do not know who made it; --debug shows what the libraries said",
        ) from error


def _read(child: subprocess.Popen[str]) -> Iterator[Event]:
    assert child.stdout is not None
    while True:
        with understood():
            if not (line := child.stdout.readline(_LINE)):
                return
            event = json.loads(line)
            if not isinstance(event["event"], str):
                raise TypeError(f"an event {str(event)[:40]!r}")
        yield event


class _Patience:
    """Ends a process that says nothing for too long. It looks at the clock now and then: a thread for each event would
    run beside what is measured."""

    def __init__(self, child: subprocess.Popen[str], silence: float | None) -> None:
        self.ended = False
        self._child, self._silence, self._last = child, silence, monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def heard(self) -> None:
        self._last = monotonic()

    def __enter__(self) -> _Patience:
        if self._silence is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _watch(self) -> None:
        assert self._silence is not None
        while not self._over.wait(min(_LOOK, self._silence)):
            if monotonic() - self._last > self._silence:
                self.ended = True
                _kill(self._child)
                return


def _kill(child: subprocess.Popen[str]) -> None:
    """And all that it started."""
    with contextlib.suppress(OSError):  # it is gone
        if sys.platform == "win32":
            child.kill()
        else:
            os.killpg(child.pid, signal.SIGKILL)
