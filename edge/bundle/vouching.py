"""Vouching: why a bundle may be opened in this process, rather than in one that may die.

A signature by a key that this user trusts vouches for a bundle, and so does what was done with it on this machine:
`edge export` wrote it, or `edge verify` replayed it. The latter is remembered by the sha256 of the manifest, which has
that of every other file: another content has no voucher.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from edge.bundle.manifest import MANIFEST, sha256
from edge.bundle.signature import PublicKey, signed
from edge.devices import file_facts, uncached, whole_files

Deed = Literal["edge export", "edge verify"]
_PLACE = "vouched"  # in the cache folder
_MOST = 1 << 10  # bytes of what is remembered of a bundle


def voucher(folder: Path, keys: Sequence[PublicKey], name: str = MANIFEST) -> str | None:
    """Who vouches for a bundle, or another manifest of this name, in words; None: nobody. `keys`: those that are
    trusted. Raises BundleError where one of them is said to have signed what it has not."""
    found = signed(folder, keys, name)
    if found is not None and found.trusted:
        return f"the signature of {found.key}"
    return _remembered(folder / name)


def remember(folder: Path, deed: Deed, name: str = MANIFEST) -> None:
    """What was done with a bundle here, or wrote another manifest. A system without room for it does it again."""
    with uncached.tolerated(), whole_files.aside(_place(folder / name)) as beside:
        beside.write_text(json.dumps({"by": deed}), encoding="utf-8")


def _remembered(manifest: Path) -> str | None:
    with uncached.tolerated():
        place = _place(manifest)
        with place.open("rb") as file:
            content = file.read(_MOST)
        try:
            by = json.loads(content)["by"]
            if by in get_args(Deed):
                return f"{by} on this machine"
            raise ValueError(f"{by!r} vouches for nothing")
        except (ValueError, LookupError, TypeError):
            uncached.damaged(str(place), "nothing vouches for the bundle; edge verify does so anew")
    return None


def _place(manifest: Path) -> Path:
    """Raises OSError and RuntimeError where there is no such place."""
    return file_facts.private_folder(_PLACE) / f"{sha256(manifest)}.json"
