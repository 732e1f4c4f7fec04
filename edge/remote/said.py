"""What another machine says: as much of it as can be kept, in characters that do not steer our terminal."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO

MOST = 1 << 26  # bytes of output, and of stderr: no command here says more
MOST_SAID = 1 << 16  # bytes of stderr that are kept: the last ones
MOST_HEARD = 1 << 20  # bytes of it that are shown
LONGEST = 1 << 12  # bytes of a line of it


class Drain:
    """Reads a pipe to its end in the background. Where more comes than any command says, `end` is called. With `last`,
    only so many bytes are kept, the last ones."""

    def __init__(self, pipe: IO[bytes], end: Callable[[], None], last: int | None = None) -> None:
        self.count = 0  # bytes that came
        self._found = bytearray()
        self._end, self._last = end, last
        self._thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._thread.start()

    def text(self) -> str:
        self._thread.join()
        return self._found.decode("utf-8", "replace")

    def _read(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed when the process was killed
            while piece := pipe.read1(1 << 16):  # type: ignore[attr-defined]
                self._found += piece
                if self._last is not None:
                    del self._found[: -self._last]
                self.count += len(piece)
                if self.count > MOST:
                    self._end()
                    return


class Tail:
    """The last lines of what was said."""

    def __init__(self) -> None:
        self.count = 0  # bytes that came
        self._lines: deque[str] = deque()
        self._size = 0

    def add(self, line: str) -> None:
        self._lines.append(line)
        self._size += len(line)
        while self._size > MOST_SAID:
            self._size -= len(self._lines.popleft())

    @property
    def text(self) -> str:
        return "\n".join(self._lines)


def lines(pipe: IO[bytes], tail: Tail) -> Iterator[str]:
    """Each line as it comes; of a long one its beginning. They end where more comes than any command says."""
    held = b""
    while tail.count <= MOST and (piece := pipe.read1(1 << 16)):  # type: ignore[attr-defined]
        tail.count += len(piece)
        *whole, held = re.split(rb"[\r\n]+", held + piece)
        yield from filter(None, map(_line, whole))
        held = held[:LONGEST]
    if text := _line(held):
        yield text


def _line(raw: bytes) -> str:
    return clean(raw[:LONGEST].decode("utf-8", "replace"))


def clean(text: str) -> str:
    """Another machine's words, without what would steer our terminal."""
    return "".join(character if character.isprintable() else " " for character in text).strip()
