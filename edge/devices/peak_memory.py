"""Peak resident memory of this process."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_bytes() -> int | None:
    """None where the system does not say."""
    if sys.platform == "linux":  # getrusage would count what the parent held before exec
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
