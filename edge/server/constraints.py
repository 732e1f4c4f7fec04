"""What an answer must be: `response_format` of a request, as the session is handed it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.server.errors import ApiError
from edge.server.fields import Fields, shown


def read_constraint(fields: Fields | None) -> Mapping[str, Any] | None:
    """None where any text will do. Raises ApiError."""
    if fields is None:
        return None
    kind = fields.needed_text("type")
    if kind == "text":
        fields.end()
        return None
    raise ApiError(
        400,
        f"{fields.name('type')} is {shown(kind)}; only text is supported",
        param=fields.name("type"),
        code="unsupported",
    )
