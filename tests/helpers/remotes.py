"""Another machine for tests: a folder with a home and commands, which a plain sh reaches."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from commands import MAIN
from conftest import REPOSITORY

import edge
from edge.errors import RemoteError
from edge.remote.shell import Dropped, Link

DOCTOR = {
    "version": edge.__version__,
    "processor": "A Board",
    "engines": [
        {"name": "onnxruntime", "formats": ["onnx"], "version": "1.31.1", "todo": None},
        {"name": "llamacpp", "formats": ["gguf"], "version": None, "todo": "pip install 'edge-vlm[llamacpp]'"},
    ],
}
RESULT = {  # a row of edge bench
    "model_filename": "bundle",
    "model_type": "tiny w4",
    "model_size": 1000,
    "n_threads": 2,
    "n_prompt": 0,
    "n_gen": 64,
    "n_depth": 0,
    "avg_ns": 5120000000,
    "stddev_ns": None,
    "avg_ts": 12.5,
    "stddev_ts": None,
    "schema": 1,
    "test": "tg64",
}


class Machine:
    """A folder with a home, and an `edge` on PATH that tests write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.bin = root / "bin"
        self.home.mkdir(parents=True)
        self.bin.mkdir()
        self.environment = {
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(self.home / ".cache"),
            "PATH": f"{self.bin}:/usr/bin:/bin",
        }

    @property
    def cache(self) -> Path:
        return self.home / ".cache" / "edge-vlm" / "remote"

    def stored(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.cache / "files").iterdir()}

    def bundles(self) -> list[Path]:
        return sorted((self.cache / "bundles").glob("*/*"))

    def script(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def edge(self, bench: str | None = None, doctor: Mapping[str, Any] = DOCTOR) -> None:
        """An `edge` that tells what it was called with, and runs `bench` (sh) for `edge bench`."""
        bench = bench if bench is not None else f"echo {shlex.quote(json.dumps(RESULT))}"
        self.script(
            "edge",
            f"""if [ "$1" = doctor ]; then echo {shlex.quote(json.dumps(doctor))}; exit; fi
for word in "$@"; do printf '%s\\0' "$word"; done >{shlex.quote(str(self.root))}/called
{bench}""",
        )

    def called(self) -> list[str]:
        return (self.root / "called").read_text().split("\0")[:-1]

    def real_edge(self) -> None:
        self.script("edge", f"PYTHONPATH={shlex.quote(str(REPOSITORY))} exec {sys.executable} -c '{MAIN}' \"$@\"")


@dataclass(frozen=True)
class Folder(Link):
    """A machine that a plain sh reaches. `before` runs there first."""

    name: str
    machine: Machine
    before: str = ":"

    program: ClassVar[str] = "sh"
    missing: ClassVar[str] = ""
    cache: ClassVar[str] = '"$XDG_CACHE_HOME/edge-vlm/remote"'
    environments: ClassVar[str] = '"$HOME/.local/bin/edge"'

    @property
    def same_place(self) -> tuple[str, ...]:
        return (self.name,)

    def argv(self, command: str) -> list[str]:
        settings = [f"{key}={value}" for key, value in self.machine.environment.items()]
        return ["env", "-i", *settings, "sh", "-c", f"{self.before}; {command}"]

    def by_hand(self, command: str) -> str:
        return f"by hand: {command}"

    def alternatives(self) -> tuple[Link, ...]:
        return (self,)

    def explain(self, code: int, said: str) -> RemoteError:
        return Dropped(f"{self.name}: lost with {code}: {said}")

    def install(self, requirement: str) -> str:
        return f"install {requirement}"
