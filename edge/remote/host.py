"""Inventory of another machine: free space, the installed package and its engines."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import edge
from edge.bundle.manifest import Manifest
from edge.engines import installed_engines, made_for
from edge.errors import RemoteError
from edge.remote.said import clean
from edge.remote.shell import Done, Link, Shell

# A package on a small board takes its time to start.
_SLOW = 180.0
_MISSING = 20
_UNWRITABLE = 21


class Absent(RemoteError):
    """The package is not installed there."""


@dataclass(frozen=True)
class Host:
    shell: Shell
    root: str  # the folder there that is ours
    free: int  # bytes
    edge: str  # the command
    facts: Mapping[str, Any]  # `edge doctor --json` there

    @property
    def name(self) -> str:
        return self.shell.link.name

    @property
    def version(self) -> str:
        return str(self.facts["version"])

    @property
    def device(self) -> str:
        """What the package there says of the machine."""
        return clean(str(self.facts.get("processor") or "unknown"))


def visit(shell: Shell, manifest: Manifest) -> Host:
    """Raises RemoteError where the machine cannot be reached, or lacks what the bundle needs: the package, of our
    version or newer, and an engine for every part."""
    needs = requirement(manifest)
    first: RemoteError | None = None
    for link in shell.link.alternatives():
        shell.link = link
        try:
            done = shell.run(_look(link), timeout=_SLOW)
        except RemoteError as error:  # the first way tells why the machine cannot be used
            raise (first or error) from error
        if done.code == 0:
            host = _read(shell, done.out)
            _suffices(host, manifest, needs)
            return host
        first = first or _lacking(link, done, needs)
    assert first is not None
    raise first


def requirement(manifest: Manifest) -> str:
    """What pip installs for a bundle: the first engine of the listing for each format."""
    formats, engines = {part.format for part in manifest.parts}, installed_engines()
    names = {info.extra or info.name for format in formats for info in made_for(format, engines)[:1]}
    extras = ",".join(sorted(names))
    return f"edge-vlm[{extras}]" if extras else "edge-vlm"


def _look(link: Link) -> str:
    return f"""
umask 077
root={link.cache}
mkdir -p "$root/files" "$root/bundles" || exit {_UNWRITABLE}
found=
for edge in edge {link.environments}; do
  found=$(command -v "$edge") && break
done
[ -n "$found" ] || exit {_MISSING}
printf '%s\\n' "$root" "$found"
printf '%s\\n' "$(df -Pk "$root" | tail -n 1)"
"$found" doctor --json </dev/null
"""


def _lacking(link: Link, done: Done, needs: str) -> RemoteError:
    if done.code == _MISSING:
        return Absent(f"{link.name}: edge-vlm is not installed there", hint=link.install(needs))
    said = clean((done.err.strip().splitlines() or [f"exit {done.code}"])[-1])
    if done.code == _UNWRITABLE:
        return RemoteError(f"{link.name}: no folder for the bundle: {said}", hint=link.by_hand("df -h; id"))
    if not done.out.strip():
        return RemoteError(f"{link.name}: its shell cannot be used: {said}", hint="a POSIX shell is needed there")
    return RemoteError(f"{link.name}: `edge doctor` fails there: {said}", hint=link.install(needs))


def _read(shell: Shell, text: str) -> Host:
    link = shell.link
    try:
        root, command, space, doctor = text.split("\n", 3)
        facts = json.loads(doctor)
        (kilobytes,) = re.findall(r"\s\d+\s+\d+\s+([0-9]{1,15})\s+\d+%", space)[:1] or ["-1"]
        if not isinstance(facts, dict) or _numbers(facts["version"]) is None:
            raise ValueError("it tells no version")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise RemoteError(
            f"{link.name}: the `edge` there is not edge-vlm's: {error}", hint=link.by_hand("command -v edge")
        ) from error
    free = int(kilobytes) * 1024 if int(kilobytes) >= 0 else 1 << 62  # a df that does not tell stops nobody
    return Host(shell, root, free, command, facts)


def _suffices(host: Host, manifest: Manifest, needs: str) -> None:
    link, there, here = host.shell.link, _numbers(host.version), _numbers(edge.__version__)
    assert there is not None and here is not None
    if there[:2] < here[:2]:
        raise RemoteError(
            f"{link.name}: edge-vlm {host.version} there is older than {edge.__version__} here",
            hint=link.install(needs),
        )
    told = [engine.get("formats") for engine in _engines(host.facts)]
    ready = {form for forms in told if isinstance(forms, list) for form in forms if isinstance(form, str)}
    if missing := sorted({part.format for part in manifest.parts} - ready):
        raise RemoteError(
            f"{link.name}: no engine is installed there for {', '.join(missing)} (the bundle's parts)",
            hint=link.by_hand(f"{shlex.quote(_pip(host.edge))} install '{needs}'"),
        )


def _pip(command: str) -> str:
    """The pip beside the command, which is in its environment."""
    folder, slash, _ = command.rpartition("/")
    return f"{folder}{slash}pip"


def _engines(facts: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Those that are installed: with a version, or with nothing to do."""
    listed = facts.get("engines")
    engines = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return [one for one in engines if one.get("version") is not None or one.get("todo") is None]


def _numbers(version: object) -> tuple[int, ...] | None:
    found = re.match(r"([0-9]{1,9})\.([0-9]{1,9})(?![0-9])", str(version))
    return tuple(map(int, found.groups())) if found else None
