"""Trusted keys: minisign's public keys whose signature vouches for a bundle, in a file of the user's."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from edge.bundle.signature import PublicKey, read_keys
from edge.errors import UsageError

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def place() -> Path:
    """`~/.config/edge-vlm/trusted_keys`, or where the system keeps a user's settings. Raises RuntimeError for a user
    without a home."""
    if sys.platform == "win32":
        root = os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming"
    else:
        root = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(root) / "edge-vlm" / "trusted_keys"


def read() -> tuple[PublicKey, ...]:
    """None where there is no such file. Raises UsageError on one that holds something else, or that others may write:
    they would decide whom this user trusts."""
    try:
        file = place()
        found = file.stat()
    except (OSError, RuntimeError):
        return ()
    if sys.platform != "win32" and (found.st_uid not in (os.getuid(), 0) or found.st_mode & _OTHERS):
        raise UsageError(f"others than you may write {file}", hint=f"chmod go-w {file}")
    try:
        return read_keys(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {error}", hint="minisign's public keys, one a line") from error
