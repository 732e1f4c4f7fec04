"""Targets of `--on`: `ssh://user@host[:port]` and `adb:SERIAL`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edge.errors import UsageError
from edge.remote.adb import Adb
from edge.remote.shell import Link
from edge.remote.ssh import Ssh

HINT = "--on ssh://user@host[:port], or --on adb:SERIAL"
# What a user's ssh_config may put into a shell's command line (ProxyCommand's %h and %r) holds no shell character.
_SSH = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.+@-]*)@)?"
    r"(?:\[(?P<ip6>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?)\]|(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]*))"
    r"(?::(?P<port>[0-9]{1,5}))?/?"
)


def parse(on: str) -> Link:
    """Raises UsageError on whatever is neither."""
    if on.startswith("adb:"):
        serial = on.removeprefix("adb:")
        if not serial or serial.startswith("-") or not serial.isprintable():
            raise UsageError(f"--on {on!r} names no device", hint="adb devices lists the serials")
        return Adb(on, serial)
    found = _SSH.fullmatch(on)
    if found is None:
        raise UsageError(f"--on {on!r} is no machine", hint=HINT)
    port = int(found["port"]) if found["port"] else None
    if port is not None and not 0 < port < 65536:
        raise UsageError(f"--on {on!r}: no port {port}", hint="1 to 65535")
    return Ssh(on, found["ip6"] or found["host"], found["user"], port)


def parse_all(values: Sequence[str]) -> tuple[Link, ...]:
    """Raises UsageError as `parse`, and on a machine that is named twice: it would measure two runs at once."""
    links = tuple(map(parse, values))
    for number, link in enumerate(links):
        if link.same_place in [before.same_place for before in links[:number]]:
            raise UsageError(f"--on {link.name!r} is named twice", hint="name each machine once")
    return links
