"""What a client is told: a status, and an error object in the protocol's shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.errors import ContextError, EdgeError, ImageError, UsageError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """Leaves the server as `{"error": {message, type, param, code}}`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Gone(Exception):
    """The client is not there any more: its answer ends."""


def told(error: Exception) -> ApiError:
    """What a client may know of an error. An engine's own words may hold paths, and stay in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextError):
        return ApiError(400, str(error.message), param="messages", code="context_length_exceeded")
    if isinstance(error, ImageError):
        return ApiError(400, _whole(error), param="messages", code="invalid_image")
    if isinstance(error, UsageError):
        return ApiError(400, _whole(error))
    what = type(error).__name__ if isinstance(error, EdgeError) else "this is a bug in edge-vlm"
    return ApiError(500, f"the answer failed ({what}); the server's log says why", code="internal_error")


def _whole(error: EdgeError) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message
