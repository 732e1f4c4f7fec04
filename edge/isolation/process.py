"""The parent's side of an isolated child: starts it, reads its events within bounds, and tells how it ended."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from edge.devices import once
from edge.errors import EngineError
from edge.isolation import events, frames

PROGRAM = (sys.executable, "-P", "-m", "edge.isolation")
SILENCE = 600.0  # seconds without an event: a long prompt on a small board takes minutes until its first word
_LEAVING = 2.0  # seconds that it has to end by itself
_DYING = 5.0  # seconds from when it says no more until it is gone
_WAITING = 8  # events that are read ahead: of a child that floods, the rest stays in its pipe
_LINE = 1 << 12  # bytes of a line on its stderr that are shown
_KEPT = 20  # of those lines
_IN_WORDS = {
    "SIGKILL": "most likely the system had no more memory",
    "SIGABRT": "a library gave up",
    "SIGSEGV": "a library read what is not its own",
    "SIGBUS": "a file that it had open was cut",
    "SIGILL": "a library was built for another processor",
}
_NO_MEMORY = (b"bad_alloc", b"MemoryError", b"Cannot allocate memory", b"memory allocation of", b"failed to allocate")
_PATIENT = "--no-isolated waits as long as it takes, in this process: for a bundle whose maker you know"
HINT = "do not use this bundle, if you do not know who made it; --debug shows what the libraries said"


class Process:
    """Events of one child. It is no part of the terminal's foreground: Ctrl-C is the parent's to hear."""

    def __init__(
        self,
        program: Sequence[str] = PROGRAM,
        *,
        told: Callable[[str], None] | None = None,
        silence: float = SILENCE,
    ) -> None:
        """`told` is given the lines of its stderr; None: they are not shown."""
        path = os.pathsep.join(str(Path(entry or ".").absolute()) for entry in sys.path)
        pipe = subprocess.PIPE
        group: dict[str, Any] = (
            {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
            if sys.platform == "win32"
            else {"start_new_session": True}
        )
        environment = {**os.environ, "PYTHONPATH": path}
        self._child = subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, **group)
        assert self._child.stdin and self._child.stdout and self._child.stderr
        self._requests, self._silence, self._told = self._child.stdin, silence, told
        self._events: queue.Queue[bytes | ValueError | None] = queue.Queue(_WAITING)  # None: it ended
        self._said: deque[bytes] = deque(maxlen=_KEPT)
        self._warnings = once.Heard()
        self._ended = False  # nobody takes its events any more
        self._readers = [
            threading.Thread(target=self._read, args=(self._child.stdout,), daemon=True),
            threading.Thread(target=self._hear, args=(self._child.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    def send(self, do: str, **arguments: Any) -> None:
        if self._ended:
            raise EngineError("the isolated process has ended", hint="open the bundle again")
        with contextlib.suppress(OSError):  # it died: the next event says so
            frames.write(cast("BinaryIO", self._requests), {"do": do, **arguments})

    def event(self, *kinds: str) -> Mapping[str, Any]:
        """The next event, one of these kinds; warnings before it are given here. What the child raised is raised; where
        it died, is silent for too long, or says what is no event, it is ended, and that is an EngineError."""
        raised = None
        while raised is None:
            try:
                found = self._events.get(timeout=self._silence)
            except queue.Empty:
                raise self._failed(f"said nothing for {self._silence:g} s, and was ended", _PATIENT) from None
            if found is None:
                raise self._failed(self._death())
            with self.read():
                event = _parsed(found)
                kind = event.get("event")
                if kind in kinds:
                    return event
                if kind == "warning":
                    self._warnings.take(event.get("text"))
                elif kind == "error":
                    raised = events.error(event)
                else:
                    raise ValueError(f"{str(kind)[:40]!r} where {' or '.join(kinds)} should follow")
        raise raised

    @contextlib.contextmanager
    def read(self) -> Iterator[None]:
        """What is read of an event inside may not be what it should be: the child is ended then."""
        try:
            yield
        except ValueError as error:
            raise self._failed(f"said what is no answer ({error}), and was ended") from error

    def end(self, within: float = _LEAVING) -> None:
        """It ends by itself in so many seconds, or is killed, and all that it started."""
        until = time.monotonic() + within
        with contextlib.suppress(OSError):
            self._requests.close()
        with contextlib.suppress(ValueError, queue.Empty):
            while not self._ended and (left := until - time.monotonic()) > 0:
                if (found := self._events.get(timeout=left)) is None:
                    break
                if (event := _parsed(found)).get("event") == "warning":  # of what it keeps as it leaves
                    self._warnings.take(event.get("text"))
        self._ended = True
        self._drain()
        with contextlib.suppress(subprocess.TimeoutExpired):
            if within:
                self._child.wait(max(0.0, until - time.monotonic()))
        self._kill()
        self._child.wait()
        for reader in self._readers:
            self._drain()
            reader.join(_LEAVING)

    def _failed(self, how: str, hint: str = HINT) -> EngineError:
        self.end(within=0)
        return EngineError(f"the isolated process that opened the bundle {how}", hint=hint)

    def _death(self) -> str:
        try:
            code = self._child.wait(_DYING)
        except subprocess.TimeoutExpired:
            return "closed its end, and was ended"
        self._readers[1].join(_LEAVING)  # its last words
        if any(word in line for line in self._said for word in _NO_MEMORY):
            return "asked for more memory than it may have, and ended"
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"was ended by {name}" + (f": {_IN_WORDS[name]}" if name in _IN_WORDS else "")

    def _kill(self) -> None:
        with contextlib.suppress(OSError):  # it is gone
            if sys.platform == "win32":
                self._child.kill()
            else:
                os.killpg(self._child.pid, signal.SIGKILL)

    def _drain(self) -> None:
        """A reader that waits for room finds some, and sees that nobody reads."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._events.get_nowait()

    def _read(self, stream: BinaryIO) -> None:
        with stream:
            try:
                while (content := frames.read(stream)) is not None and not self._ended:
                    self._events.put(content)
                self._events.put(None)
            except ValueError as error:
                self._events.put(error)

    def _hear(self, stream: BinaryIO) -> None:
        with stream:
            while line := stream.readline(_LINE):
                self._said.append(line)
                if self._told is not None:
                    self._told(line.decode(errors="replace").rstrip("\n"))


def _parsed(found: bytes | ValueError) -> dict[str, Any]:
    """Raises ValueError."""
    if isinstance(found, ValueError):
        raise found
    return frames.parse(found)
