"""A measuring process: `python -m edge.bench.worker REQUEST`. Its events go to stdout, one JSON object a line.

Loading and peak memory are a fresh process's own: what others measured before would be counted with them.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback

from edge.bench.measurements import loading, measuring, proving
from edge.bench.request import Request, failure
from edge.errors import EdgeError

PURPOSES = {"measure": measuring, "load": loading, "prove": proving}


def main(request: Request) -> int:
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library says to stdout is no event
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    try:
        for event in PURPOSES[request.purpose](request):
            events.write(json.dumps(event) + "\n")
            events.flush()
    except EdgeError as error:
        events.write(json.dumps(failure(error)) + "\n")
        return 1
    except Exception as error:
        if request.debug:
            traceback.print_exc()
        hint = "this is a bug in edge-vlm; --debug shows where"
        events.write(json.dumps(failure(EdgeError(f"{type(error).__name__}: {error}", hint=hint))) + "\n")
        return 1
    finally:
        events.flush()
    return 0


def _leave_with_the_parent() -> None:
    """stdin ends when the process that asked is gone, however it went."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Request.from_text(sys.argv[1])))
