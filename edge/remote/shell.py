"""Shell on another machine: runs commands through ssh or adb, which carry bytes in, bytes out and the end."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from edge.errors import EdgeError, RemoteError
from edge.remote import said
from edge.remote.said import clean

BEGIN = "edge-vlm:begin"  # what a login shell says of itself comes before
END = "edge-vlm:end"  # and the exit code: without it the connection was lost
STALL = 60.0  # seconds without a byte taken: the connection is dead


class Link(ABC):
    """How one command gets to one machine. Its literals are pieces of sh, its values never are."""

    name: str  # as the user gave it
    program: ClassVar[str]
    missing: ClassVar[str]  # what to do where the program is not installed

    @property
    @abstractmethod
    def cache(self) -> str:
        """Where bundles are kept there, as a word of sh."""

    @property
    @abstractmethod
    def environments(self) -> str:
        """Where else than on PATH the command may lie there, as words of sh."""

    @property
    @abstractmethod
    def same_place(self) -> tuple[str, ...]:
        """Equal for links to the same place."""

    @abstractmethod
    def argv(self, command: str) -> list[str]:
        """The local process that gives `command` to a shell there."""

    @abstractmethod
    def by_hand(self, command: str) -> str:
        """What a user types here to run it there; without a command, to log in."""

    @abstractmethod
    def alternatives(self) -> tuple[Link, ...]:
        """This link and others to the same machine, in the order to try them."""

    @abstractmethod
    def explain(self, code: int, said: str) -> RemoteError:
        """Why the program ended without the command's end, from what it said."""

    @abstractmethod
    def install(self, requirement: str) -> str:
        """How the package gets there."""


class Dropped(RemoteError):
    """The connection stood, and was lost."""


class Stopped(RemoteError):
    """The user ended the work."""


@dataclass(frozen=True)
class Explanation:
    """A program's own words, and ours for them. `said` and what the link knows are filled in."""

    words: str
    meaning: str
    hint: str
    dropped: bool = False


def explained(name: str, known: Sequence[Explanation], code: int, said: str, words: Mapping[str, str]) -> RemoteError:
    lines = said.strip().splitlines()
    for one in known:
        matching = [line for line in lines if one.words in line]
        if matching:
            filled = {**words, "said": clean(matching[-1])}
            kind = Dropped if one.dropped else RemoteError
            return kind(f"{name}: {one.meaning.format(**filled)}", hint=one.hint.format(**filled))
    if not lines:
        return Dropped(f"{name}: the connection was lost", hint="the same command goes on where it stopped")
    return RemoteError(f"{name}: {clean(lines[-1])} (exit {code})")


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


class Shell:
    """Runs commands through a link, and can end what runs. `stop` and `kill` may come from another thread."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._running: dict[subprocess.Popen[bytes], bool] = {}

    def run(self, script: str, *, timeout: float = 60.0) -> Done:
        """A script of any length. Raises RemoteError when the connection fails; what the script says is in Done."""
        return self._complete("exec sh -s", [wrapped(script).encode()], timeout)

    def feed(self, script: str, chunks: Iterable[bytes], *, patience: float = STALL) -> Done:
        """A short script whose stdin is the chunks. It may stop reading; what it says then is in Done. `patience`:
        seconds in which a chunk must be taken, and after the last one the script must end."""
        return self._complete(in_sh(wrapped(script)), chunks, patience)

    def stream(self, script: str, listen: Callable[[str], None]) -> Done:
        """A script whose end is the process's own, and which may take as long as it likes; `listen` hears each line of
        its stderr. Its stdin stays open until `stop`."""
        with self._process(in_sh(f"echo {BEGIN}\n{script}"), patient=True) as process:
            assert process.stdout is not None and process.stderr is not None
            out = said.Drain(process.stdout, partial(_kill, process))
            tail, heard = said.Tail(), 0
            for line in said.lines(process.stderr, tail):
                if (heard := heard + len(line)) <= said.MOST_HEARD:
                    listen(line)
                tail.add(line)
            if tail.count > said.MOST:
                _kill(process)
            code = process.wait()
            text = self._of(out, tail.count)
        if BEGIN not in text:
            raise self.link.explain(code, tail.text)
        return Done(code, text.partition(BEGIN)[2].lstrip("\r\n"), tail.text)

    def stop(self) -> None:
        """End what runs: a patient command hears it by the end of its stdin and may still answer."""
        self.stopped.set()
        with self._lock:
            for process, patient in self._running.items():
                if patient and process.stdin is not None:
                    with contextlib.suppress(OSError):
                        process.stdin.close()
                else:
                    _kill(process)

    def kill(self) -> None:
        self.stopped.set()
        with self._lock:
            for process in self._running:
                _kill(process)

    def _complete(self, command: str, chunks: Iterable[bytes], patience: float) -> Done:
        with self._process(command) as process:
            assert process.stdin is not None and process.stdout is not None and process.stderr is not None
            leave = partial(_kill, process)
            out, err = said.Drain(process.stdout, leave), said.Drain(process.stderr, leave, said.MOST_SAID)
            with _Watch(process, patience) as watch:
                with contextlib.suppress(BrokenPipeError, ConnectionError):  # why it stopped reading is said below
                    for chunk in chunks:
                        process.stdin.write(chunk)
                        process.stdin.flush()
                        watch.beat()
                with contextlib.suppress(OSError):
                    process.stdin.close()
                code = process.wait()
            text, words = self._of(out), self._of(err)
        if self.stopped.is_set():
            raise Stopped(f"{self.link.name}: ended")
        if watch.fired:
            raise Dropped(
                f"{self.link.name}: nothing moved for {patience:.0f} s",
                hint="the same command goes on where it stopped",
            )
        body, end, exit_code = text.partition(BEGIN)[2].rpartition(END)
        if not end:
            raise self.link.explain(code, words)
        if not re.fullmatch(r"\s*\d{1,5}\s*", exit_code):
            raise RemoteError(
                f"{self.link.name}: its shell ends with {clean(exit_code)[:80]!r}, which is no exit code",
                hint="a POSIX shell is needed there",
            )
        return Done(int(exit_code), body.strip("\r\n"), words)

    def _of(self, drain: said.Drain, count: int = 0) -> str:
        text = drain.text()
        if max(drain.count, count) > said.MOST:
            raise RemoteError(
                f"{self.link.name}: it says more than {said.MOST >> 20} MiB, which no command of ours does",
                hint=f"is it the machine that you mean? {self.link.by_hand('')}",
            )
        return text

    @contextlib.contextmanager
    def _process(self, command: str, *, patient: bool = False) -> Iterator[subprocess.Popen[bytes]]:
        # A session of its own: Ctrl-C in the terminal reaches us, and we decide what it means for the other side.
        try:
            process = subprocess.Popen(
                self.link.argv(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            why = "is not installed" if isinstance(error, FileNotFoundError) else f"does not start: {error}"
            raise EdgeError(f"{self.link.name}: {self.link.program} {why}", hint=self.link.missing) from error
        with self._lock:
            self._running[process] = patient
            if self.stopped.is_set():
                _kill(process)
        try:
            yield process
        finally:
            with self._lock:
                del self._running[process]
            if process.poll() is None:
                _kill(process)
            for pipe in (process.stdin, process.stdout, process.stderr):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()
            process.wait()


class _Watch:
    """Kills a process when nothing moved for so many seconds."""

    def __init__(self, process: subprocess.Popen[bytes], patience: float) -> None:
        self._process, self._patience = process, patience
        self._last = time.monotonic()
        self._over = threading.Event()
        self.fired = False

    def beat(self) -> None:
        self._last = time.monotonic()

    def __enter__(self) -> _Watch:
        threading.Thread(target=self._wait, daemon=True).start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._over.set()

    def _wait(self) -> None:
        while (left := self._last + self._patience - time.monotonic()) > 0:
            if self._over.wait(left):
                return
        self.fired = True
        _kill(self._process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With what it started (a ProxyCommand): they hold its pipes open."""
    if sys.platform == "win32":
        process.kill()
    elif process.returncode is None:  # else the number may be another's by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def wrapped(script: str) -> str:
    return f"echo {BEGIN}\n(\n{script}\n)\necho {END} $?\n"


def in_sh(script: str) -> str:
    """One word for whatever shell the user there logs in with."""
    return "exec sh -c " + shlex.quote(script)
