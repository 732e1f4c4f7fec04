"""Answers on the wire: JSON, errors, and streams of server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Send

from edge.server.errors import ApiError, Gone

T = TypeVar("T")
KEEP_ALIVE = b": waiting\n\n"  # a comment: clients skip it, and nobody between them closes the connection


def encoded(data: Any) -> bytes:
    """A lone surrogate, which a client's own words may hold and UTF-8 cannot, becomes a question mark."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def reply(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encoded(data), status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")


def failure(error: ApiError) -> Response:
    return reply(error.to_json(), error.status, error.headers)


async def stream(events: AsyncIterator[bytes], send: Send, stalled: float) -> None:
    """Events as they come. A reader who takes none for `stalled` seconds is cut off by TimeoutError."""

    async def write(message: Message) -> None:
        async with asyncio.timeout(stalled):
            await send(message)

    head = Response(None, 200, {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}, "text/event-stream")
    headers = [(name, value) for name, value in head.raw_headers if name != b"content-length"]
    await write({"type": "http.response.start", "status": 200, "headers": headers})
    async for data in events:
        await write({"type": "http.response.body", "body": data, "more_body": True})
    await write({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives. Raises Gone, and cancels it, as soon as the client is not there; the body was read."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(data: Any, name: str | None = None) -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + (data.encode() if isinstance(data, str) else encoded(data)) + b"\n\n"
