"""A web server of one file, in a process of its own: the one that forks commands has no threads."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from file_servers import files

_NAME = "/bundle.zip"


class Served:
    def __init__(self, address: str, process: Connection) -> None:
        self.address = f"{address}{_NAME}"
        self._process = process

    def hold(self, path: Path) -> None:
        """Serve this file from now on."""
        self._process.send(path)
        self._process.recv()


@contextmanager
def serving() -> Iterator[Served]:
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.Process(target=_serve, args=(theirs,), daemon=True)
    child.start()
    try:
        yield Served(ours.recv(), ours)
    finally:
        child.terminate()
        child.join()


def _serve(ours: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with files() as served:
        ours.send(served.address)
        while True:
            served.files[_NAME] = ours.recv().read_bytes()
            ours.send(None)
            time.sleep(0)
