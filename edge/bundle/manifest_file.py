"""Reader of a manifest's JSON: bounded, and such that every reader sees the same."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 24


def read(file: Path) -> Any:
    """Raises as `parse`, and OSError."""
    require_size(file.stat().st_size)
    return parse(file.read_bytes())


def require_size(size: int) -> None:
    """Raises ValueError where nobody reads so many bytes."""
    if size > MOST_BYTES:
        raise ValueError(f"it has {size:,} bytes, at most {MOST_BYTES:,} are read")


def parse(content: bytes) -> Any:
    """Raises ValueError on what is no JSON, or says something twice, and RecursionError."""
    data = json.loads(content, object_pairs_hook=_unique)
    json.dumps(data, ensure_ascii=False).encode()  # half of a surrogate pair is a text that nobody can write
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """One reader takes the first of two, another the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice!r} stands in it twice")
    return found
