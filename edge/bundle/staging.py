"""Staging: a folder is written aside and renamed at the end, so that a half-made bundle never exists."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from edge.bundle import folder_lock
from edge.bundle.manifest import MANIFEST
from edge.devices import whole_files
from edge.errors import EdgeError, UsageError

_LITTLE = 1 << 20  # bytes: a disk with no more is full
_OLD = "-old"


@contextlib.contextmanager
def create(destination: str | os.PathLike[str], *, bundle: bool = True) -> Iterator[Path]:
    """A directory to write a bundle into; it becomes `destination` when the block ends well, and vanishes otherwise.

    A bundle that was there is replaced only then. Anything else that was there is left alone: UsageError. With `bundle`
    False it is for other files, and nothing may be there. Of several at once the last one stays; none sees another's
    files.
    """
    final = Path(destination).resolve()
    free = not final.exists() or (final.is_dir() and not any(final.iterdir()))
    if not free and not (bundle and (final / MANIFEST).is_file()):
        raise UsageError(
            f"{str(destination)!r} exists and is not {'a bundle' if bundle else 'empty'}",
            hint="name another place" + " with -o" * bundle,
        )
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final)
        with _folder(final) as partial:
            yield partial
            if bundle and not (partial / MANIFEST).is_file():
                raise AssertionError("a bundle was created without a manifest")
            whole_files.tree_to_disk(partial)
            _replace(partial, final)
            whole_files.to_disk(final.parent)
    except OSError as error:
        # NumPy says only that it wrote less than it should have.
        if error.errno == errno.ENOSPC or (error.errno is None and _full(final.parent)):
            raise EdgeError(
                f"no space left while writing {str(destination)!r}", hint="free some space and repeat"
            ) from error
        hint = "name another place" + " with -o" * bundle
        raise EdgeError(f"cannot write {str(destination)!r}: {error}", hint=hint) from error


@contextlib.contextmanager
def _folder(final: Path) -> Iterator[Path]:
    """An own folder beside the destination, locked as long as it is written to."""
    while True:
        partial = final.with_name(f".{final.name}.partial-{secrets.token_hex(8)}")
        partial.mkdir()
        with folder_lock.held(partial) as ours:
            if not ours and not partial.exists():  # taken for a left one before it was locked
                continue
            try:
                yield partial
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            return


def _replace(partial: Path, final: Path) -> None:
    # What is replaced is locked, too: while it has another name it would be taken for one that was left.
    with folder_lock.held(final, wait=True):
        if not final.exists():
            try:
                partial.rename(final)
                return
            except OSError:
                if not final.exists():  # else another was there first
                    raise
        old = partial.with_name(f"{partial.name}{_OLD}")
        try:
            final.rename(old)
            partial.rename(final)
        except BaseException:  # a signal may fall between the two
            if old.exists() and not final.exists():
                old.rename(final)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _sweep(final: Path) -> None:
    """Remove what an export that was killed left beside the destination: what nobody holds."""
    for left in final.parent.glob(f".{glob.escape(final.name)}.partial-*"):
        with folder_lock.held(left) as ours:
            if not ours:
                continue
            if left.name.endswith(_OLD) and not final.exists():
                left.rename(final)  # the kill fell between the two renames
            else:
                shutil.rmtree(left, ignore_errors=True)


def _full(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < _LITTLE
