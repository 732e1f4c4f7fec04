"""Campaigns of faults: `python tests/faults/faults.py BUNDLE kills|writes|together COUNT [COMMAND ...]` (make faults).

`kills` ends commands by SIGKILL at seeded moments, half of them within one of their writes. `writes` lets a disk be
full from the n-th call on, and the n-th call alone fail: COUNT seeded n for each command, 0: each n. `together` runs
each command three times at once. After every fault what the user owns is there, old or new, and whole; the same
command then succeeds, and leaves nothing but what it wrote. BUNDLE is the demo's. Linux, with a C compiler.
"""

from __future__ import annotations

import multiprocessing
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "helpers"), str(HERE.parents[1])]

from forked import BROKEN, FULL, KILLED, Ended, Running, command, preloaded  # noqa: E402

THESIS = "years of work"
LEFT = (".part", "-old", "archive.part.json")  # how names end of what was not finished


class Fault(Exception):
    """What must not be."""


class Trial:
    """A command on a disk of its own, on which what it wrote before, and its caches, may be there already."""

    def __init__(self, name: str, given: object, folder: Path) -> None:
        from writing import COMMANDS

        self.writing, self.given, self.folder = COMMANDS[name], given, folder
        self.disk = folder / "disk"
        self._begin()
        self.first = self.run()
        if self.first.code:
            raise Fault(f"it fails by itself: {self.first.err[-2000:]}")
        shutil.copytree(self.disk, folder / "done", symlinks=True)

    def _begin(self) -> None:
        shutil.rmtree(self.disk, ignore_errors=True)
        (self.disk / "out").mkdir(parents=True)
        (self.disk / "out" / "thesis").write_text(THESIS)

    def again(self, *, done: bool, warm: bool) -> None:
        """The disk as it was before: with what the command wrote once, and with its caches."""
        self._begin()
        for name, wanted in (("out", done), ("cache", warm)):
            if wanted and (self.folder / "done" / name).exists():
                shutil.rmtree(self.disk / name, ignore_errors=True)
                shutil.copytree(self.folder / "done" / name, self.disk / name, symlinks=True)

    def run(self, how: int = 0, which: int = 0, killed_after: float | None = None) -> Ended:
        return self.begun("one", how, which).ended(killed_after)

    def begun(self, name: str, how: int = 0, which: int = 0) -> Running:
        """Under a name of its own, so that several are possible at once."""
        work = command(self.writing.arguments(self.given, self.disk / "out"))
        places = {"cache": self.disk / "cache", "below": self.disk}
        return Running(work, self.folder / "logs" / name, **places, how=how, which=which)

    def require_whole(self, *, there: bool) -> None:
        """What the user owns is whole; `there`: it was there before."""
        if (self.disk / "out" / "thesis").read_text() != THESIS:
            raise Fault("a file beside it was changed")
        path = self.disk / "out" / self.writing.writes
        if not self.writing.writes or not (there or path.exists()):
            return
        try:
            self.writing.whole(self.given, path)
        except Exception as error:
            raise Fault(f"{self.writing.writes} is lost or not whole: {error!r}") from error

    def require_success(self) -> None:
        """The same command, which nothing hinders any more."""
        done = self.run()
        if done.code:
            raise Fault(f"the next run fails: {done.err[-500:]}")
        self._require_answer(done)
        self.require_whole(there=True)
        if left := sorted(str(path.relative_to(self.disk)) for path in self._left()):
            raise Fault(f"left behind: {', '.join(left)}")

    def _require_answer(self, done: Ended) -> None:
        if self.writing.answers and done.out != self.first.out:
            raise Fault(f"it answers {done.out!r}, not {self.first.out!r}")

    def _left(self) -> Iterator[Path]:
        for path in self.disk.rglob("*"):
            if path.parent.name == "packed":  # an engine's cache, which goes after a day
                continue
            if path.name.endswith(LEFT) or ".partial-" in path.name:
                yield path

    def require_told(self, done: Ended) -> None:
        """A failure is one error with a hint; where the command succeeded all the same, it did what it should."""
        if not done.code:
            self._require_answer(done)
            self.require_whole(there=True)
        elif done.code not in (1, 2):
            raise Fault(f"it ends with {done.code}: {done.err[-500:]}")
        elif "Traceback" in done.err or "error: " not in done.err or "hint: " not in done.err:
            raise Fault(f"it fails without a sentence: {done.err[-800:]}")
        elif "this is a bug" in done.err:
            raise Fault(f"it takes the fault for its own: {done.err[-500:]}")


def kills(trial: Trial, count: int, random: Random) -> Counter[str]:
    """So many at seeded moments; how they ended."""
    found: Counter[str] = Counter()
    for _ in range(count):
        done, warm = random.random() < 0.5, random.random() < 0.5
        trial.again(done=done, warm=warm)
        if random.random() < 0.5:
            ended = trial.run(KILLED, random.randint(1, max(1, trial.first.count)))
        else:
            ended = trial.run(killed_after=random.random() * trial.first.seconds)
        found["killed" if ended.code < 0 else "ended before"] += 1
        trial.require_whole(there=done)
        trial.require_success()
    return found


def writes(trial: Trial, count: int, random: Random) -> Counter[str]:
    """Calls that fail, and how the command ended; `count` 0: each call."""
    found: Counter[str] = Counter()
    for how in (FULL, BROKEN):
        numbers = list(range(1, trial.first.count + 1))
        for number in sorted(random.sample(numbers, min(count or len(numbers), len(numbers)))):
            done = random.random() < 0.5
            trial.again(done=done, warm=False)
            ended = trial.run(how, number)
            found["failed" if ended.code else "succeeded"] += 1
            trial.require_told(ended)
            trial.require_whole(there=done)
            trial.require_success()
    return found


def together(trial: Trial, count: int, random: Random) -> Counter[str]:
    """So many times three at once, which write the same and fill the same caches."""
    found: Counter[str] = Counter()
    for _ in range(count):
        trial.again(done=random.random() < 0.5, warm=random.random() < 0.3)
        running = [trial.begun(str(number)) for number in range(3)]
        ended = [one.ended() for one in running]
        for one in ended:
            if one.code:
                raise Fault(f"it fails beside others: {one.err[-500:]}")
            trial.require_told(one)
        found["three at once"] += 1
        trial.require_success()
    return found


def campaign(bundle: Path, what: str, count: int, names: list[str]) -> int:
    """The number of commands that a fault was found with."""
    import writing
    from serving_files import serving

    chosen = names or list(writing.COMMANDS)
    torch = bool({*chosen} & {*writing.ALONE})
    _import(engine=bool({*chosen} - {*writing.WITHOUT_ENGINE}), torch=torch)
    faults, total = 0, Counter[str]()
    with tempfile.TemporaryDirectory() as place, serving() as served:
        (folder := Path(place) / "given").mkdir()
        given = writing.make(folder, bundle, served.address, checkpoint=torch)
        served.hold(given.archive)
        time.sleep(2.1)  # what was written just now is looked at again, and not remembered
        for number, name in enumerate(chosen):
            share = count // len(chosen) + (number < count % len(chosen))
            folder = Path(place) / str(number)
            try:
                trial = Trial(name, given, folder)
                found = CAMPAIGNS[what](trial, count if what == "writes" else share, Random(name))
            except Fault as fault:
                faults += 1
                print(f"{name}: FAULT: {fault}", flush=True)
                continue
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            total += found
            print(f"{name}: {trial.first.count} calls; {_told(found)}", flush=True)
    print(f"{what}: {sum(total.values())} runs of {len(chosen)} commands: {_told(total)}; {faults} faults")
    return faults


CAMPAIGNS = {"kills": kills, "writes": writes, "together": together}


def _told(found: Counter[str]) -> str:
    return ", ".join(f"{count} {how}" for how, count in sorted(found.items()))


def _import(*, engine: bool, torch: bool) -> None:
    """What every command would import, once; nothing here may start a thread."""
    if engine:
        import onnxruntime  # noqa: F401

        import edge.bench.runner
        import edge.evaluation.runner
        import edge.inference.session
        import edge.verify  # noqa: F401
    if torch:
        import onnx  # noqa: F401
        import torch as _  # noqa: F401

        import exporters.export  # noqa: F401


if __name__ == "__main__":
    preloaded()
    multiprocessing.set_start_method("fork")
    given_bundle, what, *more = sys.argv[1:]
    number = int(more.pop(0)) if more and more[0].isdecimal() else 0
    sys.exit(min(campaign(Path(given_bundle).resolve(), what, number, more), 99))
