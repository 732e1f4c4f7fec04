"""A connection of uvicorn's with deadlines: for a request's head, and errors that are JSON."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge.server.errors import ApiError
from edge.server.limits import Limits
from edge.server.replies import encoded


def bounded(limits: Limits) -> type[H11Protocol]:
    """uvicorn makes the connections itself, from a class."""
    return type("BoundedConnection", (Connection,), {"limits": limits})


class Connection(H11Protocol):
    limits = Limits()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(ApiError(503, "too many connections", headers={"Retry-After": "5"}))
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, "this is no HTTP request", code="invalid_http"))

    def _watch(self) -> None:
        """A head that has begun must end in time; a connection that is new must begin one."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._unwatch()
        elif self._deadline is None:
            late = ApiError(408, "the request's head did not arrive in time", code="timeout")
            self._deadline = self.loop.call_later(self.limits.head_seconds, self._refuse, late)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, error: ApiError) -> None:
        """Say why, where nothing was said yet, and close."""
        self._unwatch()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            body = encoded(error.to_json())
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            response = h11.Response(
                status_code=error.status,
                headers=[*headers, *error.headers.items()],
                reason=HTTPStatus(error.status).phrase.encode(),
            )
            for part in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(part) or b"")
        self.transport.close()
