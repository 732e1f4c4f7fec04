"""Request bodies: of a bounded size, in a bounded time, and not too many of them at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from edge.server.errors import ApiError, Gone
from edge.server.limits import Limits


class Bodies:
    """Counts the bytes that are held; belongs to one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held = 0

    @contextmanager
    def room(self) -> Iterator[Body]:
        """For one body, until its request is answered."""
        body = Body(self, self._limits)
        try:
            yield body
        finally:
            self.held -= body.size


class Body:
    def __init__(self, bodies: Bodies, limits: Limits) -> None:
        self._bodies = bodies
        self._limits = limits
        self.size = 0

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """JSON, by its content type. Raises ApiError on what is too large, too slow or of another type."""
        headers, limits = Headers(scope=scope), self._limits
        # Browsers ask before they send this type to another site: a form of a foreign page cannot.
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the body must be application/json", code="unsupported_media_type")
        if (told := headers.get("content-length", "")).isdecimal():
            self._require(int(told))
        chunks, started, more = [], monotonic(), True
        while more:
            left = started + limits.body_seconds + self.size / limits.body_rate - monotonic()
            try:
                message = await asyncio.wait_for(receive(), max(0.001, left))
            except TimeoutError:
                raise ApiError(408, "the body did not arrive in time", code="timeout") from None
            if message["type"] == "http.disconnect":
                raise Gone
            chunk = message.get("body", b"")
            self._require(self.size + len(chunk))
            self.size += len(chunk)
            self._bodies.held += len(chunk)
            if self._bodies.held > limits.bodies_bytes:
                raise ApiError(429, "too much is being sent at once; come again", headers={"Retry-After": "2"})
            chunks.append(chunk)
            more = message.get("more_body", False)
        return b"".join(chunks)

    def _require(self, size: int) -> None:
        if size > self._limits.body_bytes:
            raise ApiError(413, f"the body is larger than {self._limits.body_bytes:,} bytes", code="too_large")
