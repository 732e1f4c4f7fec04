"""coremltools, imported without what it says of libraries that are newer than it and of a Mac that is not there."""

from __future__ import annotations

import importlib
import logging
from types import ModuleType
from typing import Any


def _quietly() -> ModuleType:
    log = logging.getLogger("coremltools")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        return importlib.import_module("coremltools")
    finally:
        # It tells of each operation that it registers or adds: thousands of lines.
        log.setLevel(max(before, logging.INFO))


coremltools: Any = _quietly()
TARGET = coremltools.target.iOS18  # the first with states, several functions and 4-bit weights in blocks
