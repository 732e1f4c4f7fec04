"""Benchmark on a phone without Python: by the Android demo, which is driven through adb's shell."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from edge.bundle.manifest import Bundle
from edge.errors import RemoteError, UsageError
from edge.remote.copy import copy
from edge.remote.host import Host
from edge.remote.said import clean
from edge.remote.shell import Done, Shell

PACKAGE = "dev.edgevlm.demo"
FOLDER = f"/sdcard/Android/data/{PACKAGE}/files"  # the app's own on the shared storage, which adb's shell reaches too
FORMATS = ("onnx",)  # of parts that it opens
_RESULT = f"{FOLDER}/bench.json"
_REPETITIONS = re.compile(r"--repetitions=(\d+)")
_ABSENT, _GONE = 40, 41


def visit(shell: Shell) -> Host | None:
    """The phone as the app's place; None where the app is not installed."""
    done = shell.run(f"""pm path {PACKAGE} >/dev/null 2>&1 || exit {_ABSENT}
mkdir -p {FOLDER}/files {FOLDER}/bundles || exit
getprop ro.product.model
dumpsys package {PACKAGE} | sed -n 's/.*versionName=//p' | head -n 1
df -Pk {FOLDER} | tail -n 1""")
    if done.code == _ABSENT:
        return None
    lines = done.out.splitlines()
    if done.code or len(lines) < 3:
        said = clean((done.err.strip().splitlines() or [f"exit {done.code}"])[-1])
        hint = shell.link.by_hand(f"ls -ld {FOLDER}")
        raise RemoteError(f"{shell.link.name}: the Android demo's folder cannot be used: {said}", hint=hint)
    space = re.findall(r"\s\d+\s+\d+\s+([0-9]{1,15})\s+\d+%", lines[-1])
    free = int(space[0]) * 1024 if space else 1 << 62  # a df that does not tell stops nobody
    return Host(shell, FOLDER, free, PACKAGE, {"version": clean(lines[1]), "processor": lines[0]})


def measure(
    host: Host, bundle: Bundle, options: Sequence[str], report: Callable[[str, float], None]
) -> list[dict[str, Any]]:
    """Copy, run, and read what the app wrote: rows as `edge bench -o json` has them. `options` as `edge bench` is given
    them. Raises RemoteError, and UsageError on an option that the app lacks."""
    name = host.name
    repetitions = _repetitions(name, options)
    if missing := sorted({part.format for part in bundle.manifest.parts} - set(FORMATS)):
        hint = "export another, or run edge there: " + host.shell.link.install("edge-vlm")
        raise RemoteError(f"{name}: the Android demo there opens no {', '.join(missing)} parts", hint=hint)
    path = copy(host, bundle, lambda share: report(f"{name}: copy", share))
    done = host.shell.stream(_script(path, repetitions), lambda line: None)
    return _parsed(host, done)


def _repetitions(name: str, options: Sequence[str]) -> int:
    count = 5
    for option in options:
        if (found := _REPETITIONS.fullmatch(option)) is None:
            raise UsageError(f"{name}: the Android demo there knows no {option}", hint="it takes --repetitions only")
        count = int(found[1])
    return count


def _script(path: str, repetitions: int) -> str:
    """Waits as long as the app lives. The watcher's stdin is the connection: its end ends this."""
    start = f"am start -n {PACKAGE}/.MainActivity --es bench {shlex.quote(path)} --ei repetitions {repetitions}"
    return f"""rm -f {_RESULT}
exec 3<&0
(cat; kill -TERM $$) <&3 >/dev/null 2>&1 &
watcher=$!
{start} </dev/null >/dev/null || exit
sleep 1
code={_GONE}
while pidof {PACKAGE} >/dev/null || [ -f {_RESULT} ]; do
  if [ -f {_RESULT} ]; then cat {_RESULT}; code=0; break; fi
  sleep 1
done
kill $watcher
exit $code"""


def _parsed(host: Host, done: Done) -> list[dict[str, Any]]:
    by_hand = host.shell.link.by_hand("logcat -d -t 200")
    if done.code == _GONE:
        raise RemoteError(f"{host.name}: the Android demo there ended while it measured", hint=by_hand)
    try:
        found = json.loads(done.out)
    except (ValueError, RecursionError) as error:
        said = clean((done.err.strip().splitlines() or [str(error)])[-1])
        raise RemoteError(f"{host.name}: the Android demo there gave no JSON: {said}", hint=by_hand) from error
    if isinstance(found, dict) and "error" in found:
        raise RemoteError(f"{host.name}: {clean(str(found['error']))}")
    if isinstance(found, list) and found and all(isinstance(row, dict) for row in found):
        return found
    raise RemoteError(f"{host.name}: the Android demo there gave no rows", hint=by_hand)
