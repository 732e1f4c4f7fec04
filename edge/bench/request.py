"""The request to one benchmark process, and its errors on the way back: JSON both ways."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Literal, cast, get_args

from edge import errors
from edge.errors import EdgeError, EngineError, UsageError
from edge.types import CacheKind

Purpose = Literal["measure", "load", "prove"]  # all rows; loading alone; replaying the golden sample
PROMPT, GENERATED = 190, 64  # as much of them as the context holds, where nothing was asked for


@dataclass(frozen=True)
class Request:
    """One bundle on one engine with so many threads. `n_prompt` and `n_gen` None: the usual ones; a 0 in
    them: none."""

    bundle: str = ""
    engine: str | None = None
    threads: int = 0
    cache: CacheKind | None = None
    isa: str | None = None
    provider: str | None = None
    gpu_layers: int | None = None
    picture: str | None = None  # None: the bundle's own
    n_prompt: tuple[int, ...] | None = None
    n_gen: tuple[int, ...] | None = None
    n_depth: tuple[int, ...] = (0,)
    repetitions: int = 5
    sustained: float = 0.0  # seconds
    questions: str | None = None  # a folder of them, with answers
    purpose: Purpose = "measure"
    debug: bool = False
    bounded: bool = False  # its process is, as nothing vouches for the bundle

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Request:
        data: Any = {name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(text).items()}
        return cls(**data)


def sweep(
    bundles: Sequence[str], engines: str, threads: str, caches: str, providers: str, common: Request
) -> list[Request]:
    """A request for each bundle with each engine, number of threads, kind of cache and provider: lists with commas,
    empty ones leave the choice open. Raises UsageError."""
    counts = numbers("-t", threads, 0) or (0,)
    names: list[str | None] = [*_list(engines)] or [None]
    kinds: list[CacheKind | None] = [_kind(name) for name in _list(caches)] or [None]
    computing: list[str | None] = [*_list(providers)] or [None]
    return [
        replace(common, bundle=bundle, engine=engine, threads=count, cache=kind, provider=provider)
        for bundle, engine, count, kind, provider in product(bundles, names, counts, kinds, computing)
    ]


def numbers(option: str, text: str, least: int = 1) -> tuple[int, ...]:
    """`190,512`; empty is none. Raises UsageError."""
    words = _list(text)
    if wrong := [word for word in words if not word.isdecimal() or int(word) < least]:
        raise UsageError(f"{option} is {wrong[0]!r}", hint=f"numbers of at least {least}, with commas: {option} 1,2")
    return tuple(map(int, words))


def _list(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")] if text.strip() else []


def _kind(name: str) -> CacheKind:
    if name not in get_args(CacheKind):
        raise UsageError(f"no cache of {name!r}", hint="one of: " + ", ".join(get_args(CacheKind)))
    return cast("CacheKind", name)


def failure(error: EdgeError) -> dict[str, Any]:
    return {"event": "error", "kind": type(error).__name__, "message": error.message, "hint": error.hint}


def raised(event: Mapping[str, Any]) -> EdgeError:
    """The error that a measuring process told of; one that is none of the tree is an EngineError."""
    kind = getattr(errors, str(event.get("kind")), None)
    if not (isinstance(kind, type) and issubclass(kind, EdgeError)):
        kind = EngineError
    return kind(str(event.get("message")), hint=event.get("hint") and str(event["hint"]))
