"""Capture of a native library's stderr, kept from a user who asked for none of it."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from typing import Any


class CapturedStderr:
    """A context in which stderr is captured: the reason of a failure may stand there. `library_lines` matches how the
    library's own lines begin; what others wrote meanwhile is passed on afterwards. `debug`: nothing is captured."""

    def __init__(self, library_lines: re.Pattern[bytes], debug: bool) -> None:
        self._library_lines = library_lines
        self._debug = debug
        self._text: Any = None

    def __enter__(self) -> CapturedStderr:
        if not self._debug:
            _STDERR.acquire()
            self._text = tempfile.TemporaryFile()
            self._kept = os.dup(2)
            os.dup2(self._text.fileno(), 2)
        return self

    def __exit__(self, *_: object) -> None:
        if self._text is None:
            return
        os.dup2(self._kept, 2)
        os.close(self._kept)
        self._text.seek(0)
        for line in self._text:
            if not self._library_lines.match(line):
                os.write(2, line)
        self._text.close()
        self._text = None
        _STDERR.release()

    def lines(self) -> list[str]:
        """The lines captured until now."""
        if self._text is None:
            return []
        return os.pread(self._text.fileno(), 1 << 16, 0).decode(errors="replace").splitlines()


_STDERR = threading.Lock()  # two files may be opened at a time, and there is one stderr
