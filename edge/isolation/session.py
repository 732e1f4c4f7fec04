"""Isolated session: a bundle that is open in a child process, for commands that answer and verify.

What they say and print is the same as with a session of this process (`edge.inference.session`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any

from edge.errors import UsageError
from edge.inference.constraint import Constraint
from edge.inference.generate import Answer
from edge.inference.sampling import Sampling
from edge.isolation import events
from edge.isolation.process import PROGRAM, SILENCE, Process
from edge.verify import Report

_ROOM = 8  # pieces beyond one for each token: what was held back at the end
_REPLAY = 6 * SILENCE  # seconds: a replay says nothing until it ends, and an evaluator is slow
_GREEDY = Sampling()
Told = Callable[[str], None]


def load(
    path: str | os.PathLike[str],
    *,
    program: Sequence[str] = PROGRAM,
    silence: float = SILENCE,
    told: Told | None = None,
    **options: Any,
) -> IsolatedSession:
    """Open a bundle in a child process, which on Linux ends with the thread that calls this. `options` as
    `edge.inference.session.load` takes them.

    - `silence`: seconds without a word after which the child is taken for hung, and ended.
    - `told`: is given what the child's libraries say on stderr.

    Raises what that raises, and EngineError where the child dies, hangs, or says what is no answer.
    """
    process = Process(program, told=told, silence=silence)
    try:
        process.send("open", path=os.fspath(path), options=options)
        opened = process.event("opened")
        with process.read():
            plan = events.plan(opened)
    except BaseException:
        process.end(within=0)
        raise
    return IsolatedSession(process, plan)


def verify(
    path: str | os.PathLike[str],
    *,
    program: Sequence[str] = PROGRAM,
    silence: float = _REPLAY,
    told: Told | None = None,
    **options: Any,
) -> Report:
    """`edge.verify.verify` of a bundle in a child process. Raises as `load`."""
    process = Process(program, told=told, silence=silence)
    try:
        process.send("verify", path=os.fspath(path), options=options)
        verified = process.event("verified")
        with process.read():
            return events.report(verified)
    finally:
        process.end(within=0)


class IsolatedSession:
    """Made by `load`; one thread at a time. An answer that was not read to its end is stopped before another begins."""

    def __init__(self, process: Process, plan: events.IsolatedPlan) -> None:
        self.plan = plan
        self._peak: int | None = None
        self._process = process
        self._last: Answer | None = None
        self._answering = False

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def last(self) -> Answer:
        """The answer that ended last. Raises UsageError when there is none."""
        if self._last is None:
            raise UsageError("nothing was answered yet", hint="read an answer to its end first")
        return self._last

    def peak_bytes(self) -> int | None:
        """Of the child's memory, when its last answer ended; None where its system does not say."""
        return self._peak

    def stream(
        self, image: Sequence[str] | None, question: str, *, system: str | None = None, **options: Any
    ) -> Iterator[str]:
        """As of a session; images are paths. `options`: max_tokens, sampling and schema."""
        yield from self._pieces("stream", options, images=_paths(image), question=question, system=system)

    def chat(self, image: Sequence[str] | None = None, *, system: str | None = None) -> IsolatedChat:
        return self._begun(image, system, None)

    def resume(self, path: str, image: Sequence[str] | None = None) -> IsolatedChat:
        return self._begun(image, None, path)

    def close(self) -> None:
        self._process.end()

    def __enter__(self) -> IsolatedSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begun(self, image: Sequence[str] | None, system: str | None, saved: str | None) -> IsolatedChat:
        self._ready()
        self._process.send("chat", images=_paths(image), system=system, saved=saved)
        begun = self._process.event("chat")
        with self._process.read():
            said = None if begun.get("system") is None else events.text(begun, "system", events.MOST_TEXT)
            return IsolatedChat(self, events.count(begun, "turns"), said)

    def _save(self, path: str) -> None:
        self._ready()
        self._process.send("save", path=path)
        self._process.event("saved")

    def _pieces(
        self,
        do: str,
        options: dict[str, Any],
        **arguments: Any,
    ) -> Iterator[str]:
        self._ready()
        asked = _options(**options)
        self._process.send(do, **arguments, **asked)
        self._answering = True
        pieces: list[str] = []
        for _ in range(asked["max_tokens"] + _ROOM):
            event = self._process.event("piece", "done")
            with self._process.read():
                if event["event"] == "done":
                    self._answering = False
                    self._last = events.answer(event, "".join(pieces))
                    self._peak = None if event.get("peak") is None else events.count(event, "peak")
                    return
                pieces.append(events.piece(event))
            yield pieces[-1]
        with self._process.read():
            raise ValueError(f"more than {asked['max_tokens']} tokens")

    def _ready(self) -> None:
        """An answer that nobody reads any more is stopped, and what was said of it meanwhile let go."""
        if self._answering:
            self._process.send("stop")
            while self._process.event("piece", "done", "error", "stopped")["event"] != "stopped":
                pass
            self._answering = False


class IsolatedChat:
    """As `edge.inference.chat.Chat`, of which it knows how many turns there are."""

    def __init__(self, session: IsolatedSession, turns: int, system: str | None) -> None:
        self.turns: list[None] = [None] * min(turns, 1 << 20)
        self.system = system
        self._session = session

    def stream(self, question: str, **options: Any) -> Iterator[str]:
        yield from self._session._pieces("ask", options, question=question)
        self.turns.append(None)

    def save(self, path: str) -> None:
        self._session._save(path)


def _paths(image: Sequence[str] | None) -> list[str] | None:
    return None if image is None else [os.fspath(path) for path in image]


def _options(max_tokens: int = 256, sampling: Sampling = _GREEDY, schema: Constraint | None = None) -> dict[str, Any]:
    return {"max_tokens": max_tokens, "sampling": asdict(sampling), "schema": schema and asdict(schema)}
