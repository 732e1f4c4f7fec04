"""What an answer must be, from the fields of either endpoint to what the session is handed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from edge.server.errors import ApiError
from edge.server.fields import Fields, as_fields, shown

_ANY_OBJECT = {"type": "object"}
_MOST_CHOICES = 1000


@dataclass(frozen=True)
class Wanted:
    kind: Literal["schema", "regex", "choice"]
    value: Any  # the JSON schema; the expression; the texts
    where: str  # the field that it stood in


def read_response_format(fields: Fields | None) -> Wanted | None:
    """`response_format` of a chat. None where any text will do. Raises ApiError."""
    return None if fields is None else _read(fields, "json_schema")


def read_text_format(fields: Fields | None) -> Wanted | None:
    """`text` of a response, whose `format` is the same with the schema's fields beside its type."""
    if fields is None:
        return None
    fields.ignore(("verbosity",))
    inner = fields.nested("format")
    fields.end()
    return None if inner is None else _read(inner, None)


def _read(fields: Fields, inside: str | None) -> Wanted | None:
    """`inside`: the field that holds the schema's."""
    kind = fields.needed_text("type")
    found: Wanted | None = None
    if kind == "json_object":
        found = Wanted("schema", _ANY_OBJECT, fields.name("type"))
    elif kind == "json_schema":
        found = _schema(fields if inside is None else as_fields(fields.take(inside), fields.name(inside)))
    elif kind == "regex":
        found = Wanted("regex", fields.needed_text("pattern"), fields.name("pattern"))
    elif kind == "choice":
        found = Wanted("choice", fields.texts("choices", _MOST_CHOICES), fields.name("choices"))
    elif kind != "text":
        where = fields.name("type")
        raise ApiError(400, f"{where} is {shown(kind)}, expected text, json_object or json_schema", param=where)
    fields.end()
    return found


def _schema(fields: Fields) -> Wanted:
    where, schema = fields.name("schema"), fields.take("schema")
    if not isinstance(schema, dict):
        raise ApiError(400, f"{where} is {shown(schema)}, expected a JSON schema", param=where, code="invalid_type")
    fields.text("name")
    fields.text("description")
    fields.flag("strict")
    fields.end()
    return Wanted("schema", schema, where)
