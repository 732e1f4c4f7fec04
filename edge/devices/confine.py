"""Confinement of a process by itself, as far as the system offers it: what it may take, and whom it may reach.

On Linux it dies with the process that started it, gains no privileges, reaches no network where namespaces are allowed
(most desktops and boards; not in most containers), and is refused memory beyond a bound. Every POSIX system bounds its
files, and leaves no core. On Windows nothing of this holds: there it is a process of its own, and no more.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

from edge.devices import DeviceProfile

MOST_OPEN = 1024  # files and pipes at a time
_ROOM = 1 << 30  # bytes of a file beyond twice the bundle's own: what engines keep of it, and conversations
_SLACK = 512 << 20  # bytes beside what a plan counts: stacks of threads, and what libraries reserve
_PARENT_DEATH, _NO_NEW_PRIVILEGES = 1, 38  # of prctl
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # of unshare


def alone() -> None:
    """Before anything is opened, and before there is a second thread."""
    if sys.platform == "win32":
        return
    import resource

    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, MOST_OPEN)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        _leave_the_network(libc)


def bound(here: DeviceProfile, bundle_bytes: int, max_memory: int | None = None) -> None:
    """Take no more memory of its own than the machine has, or than so many bytes, and write no file of another order of
    size than the bundle's. A card's driver reserves what it likes: where there is one, memory has no bound.

    Linux alone counts what a process may write to (RLIMIT_DATA); files that are mapped to be read do not count. CPU
    time has no bound: a conversation may last for days, and whoever waits for an answer has one.
    """
    if sys.platform == "win32":
        return
    import resource

    _lower(resource.RLIMIT_FSIZE, 2 * bundle_bytes + _ROOM)
    if here.graphics.card is None and sys.platform == "linux":
        _lower(resource.RLIMIT_DATA, min(here.memory_bytes, max_memory or here.memory_bytes) + _SLACK)


def _lower(kind: int, most: int) -> None:
    import resource

    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def _leave_the_network(libc: ctypes.CDLL) -> None:
    """Into a network of its own, in which there is nothing. Who is not root needs a user namespace for it, in which it
    stays who it is; a system that allows none keeps it where it is."""
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_NEW_NETWORK | (_NEW_USER if user else 0)) or not user:
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
