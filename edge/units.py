"""Sizes as people write and read them: `1.5GB` to bytes, and bytes to `1.50 GB`."""

from __future__ import annotations

import re

from edge.errors import UsageError

_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_size(text: str) -> int:
    """Bytes of `1.5GB` (decimal), `1.5GiB`, `800M` or `1500000000`. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?I?)B?", text.strip(), re.ASCII | re.IGNORECASE)
    if not found or found[2].upper() not in _UNITS or float(found[1]) <= 0:
        raise UsageError(f"no size: {text!r}", hint="a number with its unit: 1.5GB, 800MB, 1.5GiB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def format_size(count: float) -> str:
    """`20.5 MB`: decimal, as disks and downloads are counted."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
