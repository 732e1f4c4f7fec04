"""What an answer must be, from the fields of either endpoint to what the session is handed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge.server.errors import ApiError
from edge.server.fields import Fields, shown


def read_response_format(fields: Fields | None) -> Mapping[str, Any] | None:
    """`response_format` of a chat. None where any text will do. Raises ApiError."""
    return None if fields is None else _read(fields)


def read_text_format(fields: Fields | None) -> Mapping[str, Any] | None:
    """`text` of a response, whose `format` is the same with its schema one level up."""
    if fields is None:
        return None
    fields.ignore(("verbosity",))
    inner = fields.nested("format")
    fields.end()
    return None if inner is None else _read(inner)


def _read(fields: Fields) -> Mapping[str, Any] | None:
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
