"""A measuring process: `python -m edge.bench REQUEST`. Its events go to stdout, one JSON object a line.

Loading and peak memory are a fresh process's own: what others measured before would be counted with them.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import traceback
from collections.abc import Mapping
from typing import Any

from edge.bench.measurements import loading, measuring, proving
from edge.bench.request import Request, failure
from edge.bundle.manifest import Bundle
from edge.devices import confine, detect, once
from edge.errors import EdgeError, EngineError

PURPOSES = {"measure": measuring, "load": loading, "prove": proving}


class _Events:
    """What is said to whoever asked, of any thread."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self._saying = threading.Lock()
        os.dup2(2, 1)  # what a library says to stdout is no event

    def say(self, event: Mapping[str, Any]) -> None:
        with self._saying:
            self._stream.write(json.dumps(event) + "\n")
            self._stream.flush()


def main(request: Request) -> int:
    events = _Events()
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    try:
        if request.bounded:
            _bound(request, events)
        for event in PURPOSES[request.purpose](request):
            events.say(event)
    except EdgeError as error:
        events.say(failure(error))
        return 1
    except MemoryError:
        events.say(failure(EngineError("there is too little memory for it", hint="export with a smaller --scheme")))
        return 1
    except Exception as error:
        if request.debug:
            traceback.print_exc()
        hint = "this is a bug in edge-vlm; --debug shows where"
        events.say(failure(EdgeError(f"{type(error).__name__}: {error}", hint=hint)))
        return 1
    return 0


def _bound(request: Request, events: _Events) -> None:
    """As an isolated process is (`edge.isolation`)."""
    if not request.debug:
        logging.getLogger().addHandler(once.Forwarded(lambda text: events.say({"event": "warning", "text": text})))
    confine.bound(detect(), sum(file.bytes for file in Bundle.open(request.bundle).manifest.files()))


def _leave_with_the_parent() -> None:
    """stdin ends when the process that asked is gone, however it went."""
    while os.read(0, 1):
        pass
    os._exit(1)
