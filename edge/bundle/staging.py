"""Staging: a folder is written aside and renamed at the end, so that a half-made bundle never exists."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from edge.bundle.manifest import MANIFEST
from edge.errors import EdgeError, UsageError

_LITTLE = 1 << 20  # bytes: a disk with no more is full


@contextlib.contextmanager
def create(destination: str | os.PathLike[str], *, bundle: bool = True) -> Iterator[Path]:
    """A directory to write a bundle into; it becomes `destination` when the block ends well, and vanishes otherwise.

    A bundle that was there is replaced only then. Anything else that was there is left alone: UsageError. With `bundle`
    False it is for other files, and nothing may be there.
    """
    final = Path(destination).resolve()
    free = not final.exists() or (final.is_dir() and not any(final.iterdir()))
    if not free and not (bundle and (final / MANIFEST).is_file()):
        raise UsageError(
            f"{str(destination)!r} exists and is not {'a bundle' if bundle else 'empty'}",
            hint="name another place" + " with -o" * bundle,
        )
    partial = final.with_name(f".{final.name}.partial-{os.getpid()}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final)
        partial.mkdir()
        yield partial
        if bundle and not (partial / MANIFEST).is_file():
            raise AssertionError("a bundle was created without a manifest")
        _replace(partial, final)
    except OSError as error:
        # NumPy says only that it wrote less than it should have.
        if error.errno == errno.ENOSPC or (error.errno is None and _full(final.parent)):
            raise EdgeError(
                f"no space left while writing {str(destination)!r}", hint="free some space and repeat"
            ) from error
        hint = "name another place" + " with -o" * bundle
        raise EdgeError(f"cannot write {str(destination)!r}: {error}", hint=hint) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(partial: Path, final: Path) -> None:
    if not final.exists():
        partial.rename(final)
        return
    old = partial.with_name(f"{partial.name}-old")
    try:
        final.rename(old)
        partial.rename(final)
    except BaseException:  # a signal may fall between the two
        if old.exists() and not final.exists():
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sweep(final: Path) -> None:
    """Remove what an export that was killed left beside the destination."""
    for left in final.parent.glob(f".{glob.escape(final.name)}.partial-*"):
        pid = left.name.rpartition("partial-")[2].partition("-")[0]
        if pid.isdigit() and _alive(int(pid)):
            continue
        if left.name.endswith("-old") and not final.exists():
            left.rename(final)  # the kill fell between the two renames
        else:
            shutil.rmtree(left, ignore_errors=True)


def _full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < _LITTLE


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # an earlier process of this number: in a container every run may have the same
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
