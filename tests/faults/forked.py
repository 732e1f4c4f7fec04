"""A command in a fork of this process, which has imported what commands import; its writes below a folder may fail.

This process must have been started with the library of `failing_writes.c` preloaded (`preloaded`), and have no threads.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

NONE, FULL, BROKEN, KILLED = range(4)  # as in failing_writes.c
PATIENCE = 600.0  # seconds for one command, on a machine that is busy


@dataclass(frozen=True)
class Ended:
    code: int  # negative: the signal that ended it
    out: str
    err: str
    count: int  # calls that write; 0 of a process that was killed
    seconds: float


def preloaded() -> None:
    """This program anew, with the library preloaded, until it has ended."""
    if "EDGE_FAULTS" in os.environ:
        return
    with tempfile.TemporaryDirectory() as folder:
        library, source = Path(folder, "failing_writes.so"), Path(__file__).with_name("failing_writes.c")
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        environment = {**os.environ, "EDGE_FAULTS": str(library), "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *sys.argv], check=False, env=environment)
    sys.exit(done.returncode)


class Running:
    """A fork that does `work`, which gives an exit code, with that cache folder. `how` and `which`: the call below
    `below` that fails."""

    def __init__(
        self, work: Callable[[], int], logs: Path, *, cache: Path, below: Path, how: int = NONE, which: int = 0
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._logs, self._began = logs, time.monotonic()
        self._said, writer = os.pipe()
        self._child = os.fork()
        if not self._child:
            os.close(self._said)
            _work(work, logs, cache, writer, (below, how, which))
        os.close(writer)

    def ended(self, killed_after: float | None = None) -> Ended:
        """What became of it; `killed_after`: seconds from its start until it is killed."""
        code = _waited(self._child, self._began + (PATIENCE if killed_after is None else killed_after))
        said = os.read(self._said, 64).decode() if select.select([self._said], [], [], 0)[0] else ""
        os.close(self._said)
        out, err = ((self._logs / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err"))
        return Ended(code, out, err, int(said or 0), time.monotonic() - self._began)


def _waited(child: int, until: float) -> int:
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.002)


def _work(work: Callable[[], int], logs: Path, cache: Path, writer: int, fault: tuple[Path, int, int]) -> None:
    """In the child; never returns."""
    code = 70
    try:
        for handle, name in ((1, "out"), (2, "err")):
            opened = os.open(logs / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(opened, handle)
        os.environ["XDG_CACHE_HOME"] = str(cache)
        os.environ.pop("LD_PRELOAD", None)  # processes that it starts write nothing of their own
        library = ctypes.CDLL(os.environ["EDGE_FAULTS"])
        library.faults_arm(str(fault[0]).encode(), *fault[1:])
        try:
            code = work()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
        library.faults_count.restype = ctypes.c_long
        os.write(writer, str(library.faults_count()).encode())
    finally:
        os._exit(code)


def command(arguments: Sequence[object]) -> Callable[[], int]:
    """`edge ...`"""

    def call() -> int:
        from edge import cli

        return cli.main([str(argument) for argument in arguments])

    return call
