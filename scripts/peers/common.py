"""What contestants have in common: rows of the table, processes whose time and memory count, environments."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
PICTURES = sorted((REPOSITORY / "exporters" / "demo" / "pictures").glob("*.png"))  # three
PICTURE = REPOSITORY / "exporters" / "demo" / "pictures" / "shapes.png"
QUESTION = "What is in this picture?"
PROMPT, ANSWER = 190, 64  # positions of a prompt that is read, tokens that are decoded after it
# Key -> title, and whether more is better.
ROWS: Mapping[str, tuple[str, bool]] = {
    "prefill": ("prefill of 190, tok/s", True),
    "decode": ("decode of 64 after 190, tok/s", True),
    "picture": ("picture, s", False),
    "load": ("load, s", False),
    "first": ("loaded to first token, s", False),
    "second": ("second question, s", False),
    "process": ("process to first token, s", False),
    "peak": ("peak memory of that process, GB", False),
    "prefill_1k": ("prefill of 1,000, tok/s", True),
    "decode_1k": ("decode of 64 after 1,000, tok/s", True),
    "prefill_2k": ("prefill of 1,900, tok/s", True),
    "decode_2k": ("decode of 64 after 1,900, tok/s", True),
    "three": ("three pictures in a chat, to the last first token, s", False),
}
Figures = dict[str, float]


class Unavailable(Exception):
    """Why somebody cannot be prepared or timed here: what the table says instead of figures."""


@dataclass(frozen=True)
class Call:
    """What a run is about."""

    folder: Path  # everything that is made
    checkpoint: Path
    threads: int


class Contestant(Protocol):
    name: str  # in the table
    key: str  # of the command line

    def prepare(self, call: Call) -> None:
        """Make what is missing. Raises Unavailable."""
        ...

    def measure(self, call: Call) -> Figures:
        """One round: some of ROWS. Raises Unavailable."""
        ...


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    stdout: str
    stderr: str
    seconds: float
    peak_bytes: int


def run(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, folder: Path | None = None) -> Ended:
    """Raises Unavailable with the last line that the process wrote."""
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        try:
            process = subprocess.Popen(words, stdout=out, stderr=err, env={**os.environ, **(env or {})}, cwd=folder)
        except OSError as error:
            raise Unavailable(f"{words[0]}: {error.strerror}") from error
        _, status, usage = os.wait4(process.pid, 0)  # the memory of this one alone
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout, stderr = (_text(file) for file in (out, err))
    if process.returncode:
        told = [line.strip() for line in (stdout + stderr).splitlines() if any(map(str.isalpha, line))]
        raise Unavailable(
            f"{Path(words[0]).name} ended with {process.returncode}: {(told or ['nothing said'])[-1][:300]}"
        )
    return Ended(stdout, stderr, seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def environment(folder: Path, *packages: str) -> Path:
    """The Python of an environment of its own with these packages. Raises Unavailable."""
    python, done = folder / "bin" / "python", folder / "installed"
    wanted = "\n".join(packages)
    if not done.is_file() or done.read_text() != wanted:
        print(f"installing {' '.join(packages)} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        run([python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *packages])
        done.write_text(wanted)
    return python


def process_figures(command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Figures:
    """Of a whole process that ends with the first token."""
    ended = run(command, env=env)
    return {"process": ended.seconds, "peak": ended.peak_bytes / 1e9}


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")
