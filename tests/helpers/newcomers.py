"""Throw-away alternatives: one file more in a folder, as a contributor adds it, and gone after the test."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge import plugins


@contextmanager
def newcomers(folder: Path, package: str, sources: dict[str, str]) -> Iterator[None]:
    """`sources` maps names to what the files of the package hold; they lie in `folder`, beside the package."""
    home = importlib.import_module(package)
    assert home.__spec__ is not None
    folder.mkdir(exist_ok=True)
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source, encoding="utf-8")
    everywhere = [*home.__path__, str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(home, "__path__", everywhere)
        patch.setattr(home.__spec__, "submodule_search_locations", everywhere)
        _forget()
        try:
            yield
        finally:
            for name in sources:
                sys.modules.pop(f"{package}.{name}", None)
                vars(home).pop(name, None)
    _forget()


def _forget() -> None:
    importlib.invalidate_caches()
    plugins.names.cache_clear()
    plugins.facts.cache_clear()
