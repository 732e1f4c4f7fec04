"""Fuzzing of all readers: `python tests/fuzz/fuzz.py SECONDS [READER ...]`, or make fuzz SECONDS=….

Every reader's mutations are read in a process of its own, with little memory and time for each; what ends the process,
raises another error than EdgeError, or takes longer is a finding, and is kept in `fuzz-findings/`. Where atheris is
installed, mutations that reach new code are mutated further, for a half of the time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.util import find_spec
from pathlib import Path
from random import Random
from types import FrameType
from typing import IO

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "helpers"), str(HERE.parents[1])]

FINDINGS = Path("fuzz-findings")
MEMORY = 6 << 30  # bytes of addresses, which libraries reserve by the gigabyte
PATIENCE = 10.0  # seconds of the processor for one input: another may have it meanwhile, or stop us
_STUCK = 3600.0  # seconds by the clock after which a process that should have ended is given up
_TOLD = 5.0  # seconds between what a process says


class Late(BaseException):
    """One input takes too long. No reader may take this for a file that it cannot read."""


def main(seconds: float, names: list[str]) -> int:
    """The number of findings; at most 99."""
    from readers import READERS

    if unknown := [name for name in names if name not in READERS]:
        print(f"no reader {', '.join(unknown)}; there are {', '.join(READERS)}", file=sys.stderr)
        return 99
    chosen = names or list(READERS)
    total = findings = 0
    for name in chosen:
        count, found = _fuzzed(name, seconds / len(chosen))
        total, findings = total + count, findings + found
        print(f"{name}: {count:,} inputs, {found} findings", flush=True)
    print(f"{total:,} inputs, {findings} findings" + (f", in {FINDINGS}/" if findings else ""))
    return min(findings, 99)


def _fuzzed(name: str, seconds: float) -> tuple[int, int]:
    """Inputs and findings. A process that ends is followed by another, with another seed."""
    end, count, found, seed = time.monotonic() + seconds, 0, 0, int.from_bytes(os.urandom(4), "little") // 2 * 2
    while (left := end - time.monotonic()) > 0.5:
        with tempfile.TemporaryDirectory(dir=_memory()) as folder:
            guided = find_spec("atheris") is not None and not seed % 2
            part = left / 2 if guided else left
            command = [
                sys.executable,
                __file__,
                "--guided" if guided else "--child",
                name,
                str(part),
                str(seed),
                folder,
            ]
            with Path(folder, "said").open("wb") as said:
                how = _ended(command, part, said)
            count += int(_read(Path(folder, "count")) or 0)
            if how:
                found += 1
                _keep(name, Path(folder), f"{how}, seed {seed}")
        seed += 1
    return count, found


def _memory() -> str | None:
    """Where files are in memory, if there is such a place: a mutation is written, read, and forgotten."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _ended(command: list[str], seconds: float, said: IO[bytes]) -> str:
    """How the process ended, if not well."""
    try:
        done = subprocess.run(command, check=False, timeout=seconds + _STUCK, stderr=said)
    except subprocess.TimeoutExpired:
        return "it did not end"
    return f"exit code {done.returncode}" if done.returncode else ""


def _keep(name: str, folder: Path, how: str) -> None:
    FINDINGS.mkdir(exist_ok=True)
    number = len(list(FINDINGS.glob(f"{name}-*.txt")))
    for made in (*folder.glob("artifact-*"), *folder.glob("work/*")):  # what was read last
        if made.is_file():
            (FINDINGS / f"{name}-{number}.bin").write_bytes(made.read_bytes())
            break
    why = _read(folder / "why") or _read(folder / "said")[-4000:]
    (FINDINGS / f"{name}-{number}.txt").write_text(f"{how}\n{why}", encoding="utf-8")
    print(f"{name}: {how}: {FINDINGS / f'{name}-{number}'}", file=sys.stderr)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def child(name: str, seconds: float, seed: int, folder: Path) -> None:
    """Reads mutations until the time is over; ends with 1 at a finding."""
    from readers import READERS

    _limit()
    reader, random, begin = READERS[name], Random(seed), time.monotonic()
    corpus, count, told = reader.seeds(), 0, 0.0
    (work := folder / "work").mkdir()
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    while (now := time.monotonic() - begin) < seconds:
        content = reader.mutated(random.choice(corpus), corpus, random)
        signal.setitimer(signal.ITIMER_PROF, PATIENCE)
        try:
            taken = reader.read(content, work)
        except BaseException:
            (folder / "why").write_text(traceback.format_exc(), encoding="utf-8")
            (folder / "count").write_text(str(count + 1))
            os._exit(1)
        signal.setitimer(signal.ITIMER_PROF, 0)
        count += 1
        if taken and len(corpus) < 500 and random.random() < 0.05:  # from what is read still, further
            corpus.append(content)
        if now - told > _TOLD or count % 100 == 0:
            (folder / "count").write_text(str(count))
            told = now
    (folder / "count").write_text(str(count))


def guided(name: str, seconds: float, seed: int, folder: Path) -> None:
    """As `child`, by libFuzzer's search for inputs that reach new code of ours; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["edge"]):
        from readers import READERS

    _limit(memory=False)
    reader, count = READERS[name], 0
    seeds = reader.seeds()
    for place in ("work", "corpus"):
        (folder / place).mkdir()
    for number, content in enumerate(seeds):
        (folder / "corpus" / str(number)).write_bytes(content)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")

    def feed(content: bytes) -> None:
        nonlocal count
        count += 1
        if count % 50 == 0:
            (folder / "count").write_text(str(count))
        signal.setitimer(signal.ITIMER_PROF, PATIENCE)
        reader.read(content, folder / "work")
        signal.setitimer(signal.ITIMER_PROF, 0)

    def change(content: bytes, most: int, number: int) -> bytes:
        random = Random(number)
        if random.random() < 0.3:
            return bytes(atheris.Mutate(content, most))
        return reader.mutated(content, seeds, random)[:most]

    limits = [
        "-max_len=1048576",
        f"-timeout={30 * PATIENCE:.0f}",  # by the clock
        "-rss_limit_mb=4096",
        f"-max_total_time={max(1, int(seconds))}",
    ]
    place = [f"-artifact_prefix={folder}/artifact-", f"-seed={seed % 2**31 + 1}", str(folder / "corpus")]
    atheris.Setup(["fuzz", *limits, *place], feed, custom_mutator=change)
    atheris.Fuzz()


def _limit(*, memory: bool = True) -> None:
    def late(number: int, frame: FrameType | None) -> None:
        raise Late(f"one input took more than {PATIENCE} s")

    signal.signal(signal.SIGPROF, late)
    if memory and sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def replay(name: str, file: Path) -> None:
    """One finding again, in this process."""
    from readers import READERS

    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"taken": READERS[name].read(file.read_bytes(), Path(folder))}))


if __name__ == "__main__":
    if sys.argv[1] in ("--child", "--guided"):
        one = child if sys.argv[1] == "--child" else guided
        one(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    elif sys.argv[1] == "--replay":
        replay(sys.argv[2], Path(sys.argv[3]))
    else:
        sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
