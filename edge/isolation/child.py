"""An isolated process, `python -m edge.isolation`: opens a bundle, and answers the frames that come over stdin.

A request is `{"do": …}` with the arguments of a session's method of that name, and gets events until one of them ends
it: `opened`, `chat`, `done`, `saved`, `verified`, `stopped` or `error`; `warning` may come at any time. It ends when
stdin does.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, BinaryIO

from edge.bundle.manifest import Bundle
from edge.devices import confine, detect, once
from edge.devices.peak_memory import peak_bytes
from edge.errors import EdgeError, EngineError
from edge.inference.chat import Chat
from edge.inference.constraint import Constraint
from edge.inference.sampling import Sampling
from edge.inference.session import Session, load
from edge.isolation import frames
from edge.verify import verify

GRACE = 1.0  # seconds in which what is being written may end, once nobody listens any more
Request = dict[str, Any]


class Child:
    """One bundle, and one conversation about it at a time."""

    def __init__(self, events: BinaryIO, requests: BinaryIO) -> None:
        self._events = events
        self._requests: queue.Queue[Request | None] = queue.Queue()
        self._stop = threading.Event()  # the answer on its way is not read any more
        self._session: Session | None = None
        self._chat: Chat | None = None
        self._debug = False
        self._saying = threading.Lock()  # what loads in the background may warn
        threading.Thread(target=self._listen, args=(requests,), daemon=True).start()

    def serve(self) -> None:
        """Until stdin ends."""
        while (request := self._requests.get()) is not None:
            try:
                self._carry_out(**request)
            except EdgeError as error:
                self._fail(error)
            except MemoryError:
                self._fail(EngineError("there is too little memory for it", hint="--max-memory, or a smaller --scheme"))
            except Exception as error:
                if self._debug:
                    traceback.print_exc()
                hint = "this is a bug in edge-vlm; --debug shows where"
                self._fail(EdgeError(f"{type(error).__name__}: {error}", hint=hint))
        if self._session is not None:
            self._session.close()

    def _carry_out(self, do: str, **arguments: Any) -> None:
        work: dict[str, Callable[..., None]] = {
            "open": self._open,
            "verify": self._verify,
            "stream": self._stream,
            "chat": self._begin,
            "ask": self._ask,
            "save": self._save,
            "stop": self._stopped,
        }
        work[do](**arguments)

    def _listen(self, requests: BinaryIO) -> None:
        while (content := frames.read(requests)) is not None:
            request = frames.parse(content)
            if request["do"] == "stop":
                self._stop.set()
            self._requests.put(request)
        self._stop.set()
        self._requests.put(None)
        time.sleep(GRACE)
        os._exit(1)

    def _say(self, event: str, **facts: Any) -> None:
        with self._saying:
            frames.write(self._events, {"event": event, **facts})

    def _fail(self, error: EdgeError) -> None:
        self._say("error", kind=type(error).__name__, message=error.message, hint=error.hint)

    def _open(self, path: str, options: Mapping[str, Any]) -> None:
        self._bounded(path, options)
        self._session = load(path, **options)
        plan = self._session.plan
        self._say("opened", plan=plan.to_json(), free=list(plan.free))

    def _verify(self, path: str, options: Mapping[str, Any]) -> None:
        bundle = self._bounded(path, options)
        self._say("verified", report=verify(bundle, **options).to_json())

    def _bounded(self, path: str, options: Mapping[str, Any]) -> Bundle:
        self._debug = bool(options.get("debug"))
        if self._debug:
            logging.basicConfig(level=logging.DEBUG)
        else:
            logging.getLogger().addHandler(once.Forwarded(lambda text: self._say("warning", text=text)))
        bundle = Bundle.open(path)
        confine.bound(detect(), sum(file.bytes for file in bundle.manifest.files()), options.get("max_memory"))
        return bundle

    def _stream(self, images: list[str] | None, question: str, system: str | None, **options: Any) -> None:
        session = self._opened()
        self._let_out(session.stream(images, question, system=system, **_options(**options)))  # type: ignore[arg-type]

    def _begin(self, images: list[str] | None, system: str | None, saved: str | None) -> None:
        session = self._opened()
        self._chat = session.resume(saved, images) if saved else session.chat(images, system=system)
        self._say("chat", turns=len(self._chat.turns), system=self._chat.system)

    def _ask(self, question: str, **options: Any) -> None:
        assert self._chat is not None
        self._let_out(self._chat.stream(question, **_options(**options)))  # type: ignore[arg-type]

    def _save(self, path: str) -> None:
        assert self._chat is not None
        self._chat.save(path)
        self._say("saved")

    def _let_out(self, pieces: Iterator[str]) -> None:
        for piece in pieces:
            if self._stop.is_set():
                return
            self._say("piece", text=piece)
        answer = {name: value for name, value in asdict(self._opened().last).items() if name != "text"}
        self._say("done", answer=answer, peak=peak_bytes())

    def _stopped(self) -> None:
        self._stop.clear()
        self._say("stopped")

    def _opened(self) -> Session:
        assert self._session is not None
        return self._session


def _options(sampling: Mapping[str, Any], schema: Mapping[str, Any] | None, max_tokens: int) -> dict[str, Any]:
    constraint = None if schema is None else Constraint(**schema)
    return {"sampling": Sampling(**sampling), "schema": constraint, "max_tokens": max_tokens}


def main() -> int:
    events = os.fdopen(os.dup(1), "wb")
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)  # what a library says to stdout is no event
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    Child(events, requests).serve()
    return 0
