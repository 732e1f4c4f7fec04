"""Warm folder (`warm/`): what one kind of machine packs and computes of a bundle, shipped beside the bundle's parts.

For a machine whose home is read-only or fresh at each start. `warm/warm.json` describes the files. Native code trusts
packed weights, and answers go on from kept prefixes: a folder is used where a signature of its own, or what was done on
this machine, vouches for it, and it is of this bundle, this processor and these libraries. Any other costs a warning,
and is left alone.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge.bundle import manifest_file, trusted_keys, vouching
from edge.bundle.manifest import MANIFEST, Bundle, File, describe, sha256
from edge.bundle.signature import SUFFIX
from edge.devices import host, once, whole_files
from edge.engines import installed_engines
from edge.errors import EdgeError

FOLDER, NAME = "warm", "warm.json"
SCHEMA = 1
_FILE = re.compile(r"[0-9a-z.-]{1,200}", re.ASCII)
_PACKED = re.compile(r"[0-9a-f]{32}-[0-9a-f]{64}\.bin", re.ASCII)  # its content, hashed when it is used


def files(bundle: Bundle) -> tuple[Path, ...]:
    """Those that may be used here; none where there is no such folder, or, with a warning, where it does not serve."""
    folder = bundle.path / FOLDER
    if not (folder / NAME).is_file():
        return ()
    try:
        if vouching.voucher(folder, trusted_keys.read(), NAME) is None:
            raise ValueError("nothing vouches for it: no signature of a trusted key, nor edge verify --warm here")
        return _files(folder, manifest_file.read(folder / NAME), bundle)
    except (EdgeError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        why = error.message if isinstance(error, EdgeError) else str(error)
        once.warn(f"{folder} is not used: {why}; what it has is made anew on this machine")
        return ()


def write(bundle: Bundle, made: Sequence[Path], libraries: Mapping[str, str]) -> int:
    """Copies of files of the cache, and what describes them, in place of what was there; their size in bytes. It is
    whole at each moment: the description comes last. Raises EdgeError where it cannot be written."""
    folder, here = bundle.path / FOLDER, host.inspect()
    try:
        folder.mkdir(exist_ok=True)
        for source in made:
            if source.parent != folder:
                with whole_files.aside(folder / source.name) as beside:
                    shutil.copyfile(source, beside)
        entries = [describe(folder, folder / source.name) for source in made]
        facts = {
            "schema": SCHEMA,
            "bundle": sha256(bundle.path / MANIFEST),
            "processor": {"name": here.name, "isa": list(here.isa)},
            "libraries": dict(libraries),
            "files": [asdict(entry) for entry in entries],
        }
        (folder / f"{NAME}{SUFFIX}").unlink(missing_ok=True)  # of what was there before
        with whole_files.aside(folder / NAME) as beside:
            beside.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        for left in {*folder.iterdir()} - {folder / NAME, *(folder / entry.path for entry in entries)}:
            left.unlink()
    except OSError as error:
        raise EdgeError(f"cannot write {folder}: {error}", hint="check the folder, and the room there") from error
    vouching.remember(folder, "edge verify", NAME)
    return sum(entry.bytes for entry in entries)


def _files(folder: Path, found: Mapping[str, Any], bundle: Bundle) -> tuple[Path, ...]:
    """Raises ValueError on what is not for here, or not whole, and whatever reading it raises."""
    here = host.inspect()
    if found["schema"] != SCHEMA:
        raise ValueError(f"it has schema {found['schema']!r}, and this edge-vlm reads {SCHEMA}")
    if found["bundle"] != sha256(bundle.path / MANIFEST):
        raise ValueError("it belongs to another bundle")
    if found["processor"] != {"name": here.name, "isa": list(here.isa)}:
        raise ValueError(f"it is for another processor: {found['processor']['name']}")
    installed = {info.package: info.version for info in installed_engines() if info.installed}
    for package, version in found["libraries"].items():
        if installed.get(package) != version:
            raise ValueError(f"it is for {package} {version}; here it is {installed.get(package, 'not installed')}")
    return tuple(_whole(folder, File(**entry)) for entry in found["files"])


def _whole(folder: Path, entry: File) -> Path:
    """Packed weights are hashed when they are used, by their name; the rest, which is small, now."""
    path = folder / entry.path
    if not _FILE.fullmatch(entry.path) or path.is_symlink() or not path.is_file():
        raise ValueError(f"{entry.path!r} is no file of it")
    if path.stat().st_size != entry.bytes:
        raise ValueError(f"{entry.path} has {path.stat().st_size:,} bytes, and not {entry.bytes:,}")
    if _PACKED.fullmatch(entry.path):
        if entry.sha256 != path.stem.partition("-")[2]:
            raise ValueError(f"{entry.path} is named by another content")
    elif sha256(path) != entry.sha256:
        raise ValueError(f"{entry.path} is damaged")
    return path
