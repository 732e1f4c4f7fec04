"""Memory that an export does not use any more goes back to the system at once."""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 1 << 20  # bytes; a weight that counts is larger


def economise() -> None:
    """Each large tensor of this process lies in pages of its own. glibc would, once a few were freed, put those of up
    to 32 MB among all the rest and keep the holes: gigabytes, after a pass over a model's weights."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
