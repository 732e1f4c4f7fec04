"""Benchmark on several machines at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from edge.bundle import checksums
from edge.errors import EdgeError
from edge.remote.bench import Job, Report, Say, measure
from edge.remote.shell import Link, Shell, Stopped

GRACE = 15.0  # seconds in which an interrupted benchmark tells what it has


@dataclass(frozen=True)
class Outcome:
    """What the machines measured, in the order of the call; what failed, one error a machine."""

    results: tuple[dict[str, Any], ...]
    errors: tuple[EdgeError, ...]
    interrupted: BaseException | None = None  # what Ctrl-C or a kill raised


def bench_on(links: Sequence[Link], job: Job, report: Report, say: Say) -> Outcome:
    """Raises BundleError when a file of the bundle is damaged here. Ctrl-C and a kill end the benchmarks there, and
    what they had measured is kept. A machine that fails ends no other."""
    checksums.check(job.bundle)
    shells = [Shell(link) for link in links]
    with ThreadPoolExecutor(max_workers=len(shells)) as pool:
        runs = [pool.submit(measure, shell, job, report, say) for shell in shells]
        interrupted: BaseException | None = None
        try:
            while wait(runs, timeout=1.0).not_done:  # in steps: a signal may reach another thread first
                pass
        except (KeyboardInterrupt, SystemExit) as leaving:
            interrupted = leaving
            _end(shells, runs)
        except BaseException:
            _end(shells, runs)
            raise
    return _gather(runs, interrupted)


def _end(shells: Sequence[Shell], runs: Sequence[Future[list[dict[str, Any]]]]) -> None:
    try:
        for shell in shells:
            shell.stop()
        wait(runs, timeout=GRACE)
    finally:  # also when the user is impatient
        for shell in shells:
            shell.kill()


def _gather(runs: Sequence[Future[list[dict[str, Any]]]], interrupted: BaseException | None) -> Outcome:
    results: list[dict[str, Any]] = []
    errors: list[EdgeError] = []
    for run in runs:
        try:
            results += run.result()
        except Stopped:
            continue
        except EdgeError as error:
            if not interrupted:
                errors.append(error)
    return Outcome(tuple(results), tuple(errors), interrupted)
