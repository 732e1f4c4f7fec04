"""Emulated ARM machines: Debian's Python for arm64 under qemu-user, with the run side installed from its wheel.

`make test-arm` makes what they need, and tells where in EDGE_ARM.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from commands import MAIN
from conftest import REPOSITORY

CPUS = ("cortex-a72", "cortex-a76")  # Raspberry Pi 4; Raspberry Pi 5, and nearest to a Jetson Orin
# Tests of engines that are not installed there, and of programs that torch writes.
ABSENT = [
    REPOSITORY / "tests" / "engine" / f"test_{name}.py"
    for name in ("tflite_runtime", "executorch_runtime", "executorch_delegates", "executorch_packed")
]
LIMIT = 3000  # seconds of one job, which a machine that others use may make long
# Instruction words of the Arm Architecture Reference Manual (DDI 0487): what they are called, mask, value.
_WORDS = (
    ("neon", 0xBFA0FC00, 0x0E20CC00),  # fmla, of vectors
    ("neon", 0xBF80F400, 0x0F801000),  # fmla, by element
    ("dotprod", 0x9FE0FC00, 0x0E809400),  # sdot and udot, of vectors
    ("dotprod", 0x9FC0F400, 0x0F80E000),  # the same, by element
    ("i8mm", 0xDFE0FC00, 0x4E80A400),  # smmla and ummla
    ("sve", 0x1E000000, 0x04000000),
)

Job = Callable[["Guest"], subprocess.CompletedProcess[str]]


class Guest:
    """One processor. Its Python starts its own like any other: the launcher stands where the interpreter would."""

    def __init__(self, cpu: str, machine: Path, folder: Path) -> None:
        self.cpu = cpu
        self.python = folder / f"python-{cpu}"
        self.folder = folder
        self.traces = folder / cpu
        self.traces.mkdir()
        emulator, root = machine / "qemu-aarch64", machine / "root"
        interpreter = f'"{emulator}" -cpu {cpu} -L "{root}" -0 "$0" "{root}/usr/bin/python3.11"'
        self.python.write_text(f'#!/bin/sh\nexec {interpreter} "$@"\n', encoding="utf-8")
        self.python.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COV"))}
        self.environment = {
            **kept,
            "PYTHONPATH": str(machine / "site"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(folder / f"cache-{cpu}"),
        }

    def run(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """The guest's Python, which sees nothing of this repository but what it is given."""
        return subprocess.run(
            [self.python, "-P", *map(str, arguments)],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )

    def edge(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self.run("-c", MAIN, *arguments)

    def traced(self, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """`edge …`; the emulator writes down each instruction that it translates, which is before it first runs."""
        return self.run("-c", MAIN, *arguments, QEMU_LOG="in_asm", QEMU_LOG_FILENAME=str(self.traces / name))

    def used(self, name: str) -> Counter[str]:
        """How many places of a traced command's code use which instruction set."""
        found: Counter[str] = Counter()
        for line in (self.traces / name).open("rb"):
            if line.startswith(b"0x"):
                word = int(line.split(None, 2)[1], 16)
                found.update(family for family, mask, value in _WORDS if word & mask == value)
        return found

    def tests(self, folder: str, leave_out: Iterable[Path]) -> subprocess.CompletedProcess[str]:
        """Tests of this repository, with the package that is installed in the guest."""
        return self.run(
            *("-m", "pytest", "-c", REPOSITORY / "pyproject.toml", REPOSITORY / "tests" / folder),
            *(f"--ignore={path}" for path in leave_out),
            *("-p", "no:cacheprovider", "--hypothesis-profile=ci", "--tb=short"),
        )


class Jobs:
    """What the guests do, as many at a time as there are processors; each once, however often it is asked for."""

    def __init__(self, guests: dict[str, Guest], jobs: dict[str, Job], wanted: Iterable[tuple[str, str]]) -> None:
        self.guests = guests
        pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        self._done: dict[tuple[str, str], Future[subprocess.CompletedProcess[str]]] = {
            (cpu, job): pool.submit(jobs[job], guests[cpu]) for cpu, job in wanted
        }
        pool.shutdown(wait=False)

    def done(self, cpu: str, job: str) -> subprocess.CompletedProcess[str]:
        return self._done[cpu, job].result()


def passed(done: subprocess.CompletedProcess[str]) -> int:
    """How many tests did; fails with the end of what was said when one did not."""
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    found = re.search(r"(\d+) passed", done.stdout)
    return int(found[1]) if found else done.stdout.count(".")
