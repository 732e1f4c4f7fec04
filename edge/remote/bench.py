"""Benchmark on another machine, by the package that is installed there, or on a phone by the Android demo."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import edge
from edge.bundle.manifest import Bundle, describe
from edge.errors import EdgeError, RemoteError, UsageError
from edge.inputs.calibration import PROMPTS, Record
from edge.remote import app
from edge.remote.adb import Adb
from edge.remote.copy import copy, store
from edge.remote.host import Absent, Host, visit
from edge.remote.shell import Done, Shell

Report = Callable[[str, float], None]  # a stage's name, and how much of it is done
Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What is measured: a bundle of this machine, the options of `edge bench` as the user gave them, a picture of this
    machine instead of the bundle's own, and questions to ask."""

    bundle: Bundle
    options: tuple[str, ...] = ()
    picture: Path | None = None
    questions: tuple[Record, ...] = ()


def remote_command(path: str, options: Sequence[str]) -> list[str]:
    """What `edge` is called with there. Its stdout is JSON: an object, or a list of them."""
    return ["bench", path, "--output=json", *options]


def measure(shell: Shell, job: Job, report: Report, say: Say) -> list[dict[str, Any]]:
    """Copy, run, and label what comes back. Raises RemoteError; the message and hint of what failed there are ours."""
    name, first = shell.link.name, shell.link
    try:
        host = visit(shell, job.bundle.manifest)
    except Absent:
        shell.link = first
        if not isinstance(first, Adb) or (phone := app.visit(shell)) is None:
            raise
        options = job.options + ("--image",) * (job.picture is not None) + ("--questions",) * bool(job.questions)
        return label(phone, app.measure(phone, job.bundle, options, report))
    path = copy(host, job.bundle, lambda share: report(f"{name}: copy", share))
    options = job.options
    if job.picture is not None:
        (place,) = _stored(host, [job.picture], lambda share: report(f"{name}: picture", share))
        options = (*options, "--image", place)
    if job.questions:
        options = (*options, "--questions", _questions(host, job.questions, lambda s: report(f"{name}: questions", s)))
    done = shell.stream(_script(host, remote_command(path, options)), lambda line: _tell(name, line, say))
    if done.code and not (shell.stopped.is_set() and done.out.strip()):  # ended by the user, it kept what it had
        raise _failure(host, done)
    return label(host, _parse(host, done.out))


def _stored(host: Host, files: Sequence[Path], report: Callable[[float], None]) -> list[str]:
    """Copied as far as they are not there; where they lie."""
    entries = [describe(file.parent, file) for file in files]
    store(host, list(zip(files, entries, strict=True)), report)
    return [f"{host.root}/files/{entry.sha256}" for entry in entries]


def _questions(host: Host, records: Sequence[Record], report: Callable[[float], None]) -> str:
    """A file of questions, about pictures by where they lie there."""
    files = list(dict.fromkeys(record.picture for record in records))
    places = dict(zip(files, _stored(host, files, report), strict=True))
    lines = [{"image": places[r.picture], "question": r.question, "answer": r.answer} for r in records]
    with TemporaryDirectory() as folder:
        file = Path(folder, PROMPTS)
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        (place,) = _stored(host, [file], report)
    return place


def label(host: Host, found: Any) -> list[dict[str, Any]]:
    """Each result with where it comes from. What the package there says of itself stays."""
    rows = found if isinstance(found, list) else [found]
    return [{"device": host.device, **row, "host": host.name} for row in rows]


def _script(host: Host, command: Sequence[str]) -> str:
    """The command takes the shell's place, and with it the number that the watcher knows. The watcher's stdin is the
    connection: its end, ours or a cut, is Ctrl-C there; who does not heed it is killed."""
    return f"""cd {shlex.quote(host.root)} || exit
exec 3<&0
(cat; kill -INT $$ || exit; for second in 1 2 3 4 5 6 7 8 9 10; do sleep 1; kill -0 $$ || exit; done; kill -KILL $$) \
<&3 >/dev/null 2>&1 &
exec {shlex.join([host.edge, *command])} </dev/null 3<&-"""


def _tell(name: str, line: str, say: Say) -> None:
    if not line.startswith(("error: ", "hint: ")):  # they become our own
        say(f"{name}: {line}")


def _parse(host: Host, text: str) -> Any:
    try:
        found = json.loads(text)
        if all(isinstance(row, dict) for row in (found if isinstance(found, list) else [found])):
            return found
        raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        raise RemoteError(
            f"{host.name}: `edge bench` there gave no JSON: {error}", hint=f"edge-vlm {host.version} is there"
        ) from error


def _failure(host: Host, done: Done) -> EdgeError:
    if done.code == 255 or (done.code < 0 and not done.err):
        return host.shell.link.explain(done.code, done.err)
    lines = done.err.splitlines()
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if errors:
        message, _, hint = "\n".join(lines[errors[-1] :]).removeprefix("error: ").partition("\nhint: ")
        kind = UsageError if done.code == 2 else RemoteError
        return kind(f"{host.name}: {message}", hint=hint or None)
    versions = f"edge-vlm {host.version} is there, {edge.__version__} here"
    if done.code in (-9, 137):
        return RemoteError(
            f"{host.name}: the benchmark was killed there",
            hint=f"too little memory? {host.shell.link.by_hand('free -m')}",
        )
    words = [line.strip("│╭╮╰╯─ ") for line in lines]
    said = "; ".join([word for word in words if word][-2:]) or "it said nothing"
    return RemoteError(f"{host.name}: `edge bench` fails there (exit {done.code}): {said}", hint=versions)
