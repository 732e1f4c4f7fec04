"""What an answer must be: from the fields of either endpoint to a constraint that the session can follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge.errors import UsageError
from edge.inference.constraint import MOST_CHOICES, Constraint
from edge.server.errors import ApiError, told
from edge.server.fields import Fields, as_fields, shown

_ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True)
class Wanted:
    constraint: Constraint
    where: str  # the field that it stood in

    def refused(self, error: Exception) -> ApiError:
        return _refused(error, self.where, self.constraint.kind)


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
        found = Wanted(Constraint.json(_ANY_OBJECT), fields.name("type"))
    elif kind == "json_schema":
        found = _schema(fields if inside is None else as_fields(fields.take(inside), fields.name(inside)))
    elif kind == "regex":
        pattern, where = fields.needed_text("pattern"), fields.name("pattern")
        found = _bounded(lambda: Constraint.regex(pattern), where, kind)
    elif kind == "choice":
        choices, where = fields.texts("choices", MOST_CHOICES), fields.name("choices")
        found = _bounded(lambda: Constraint.choice(choices), where, kind)
    elif kind != "text":
        where = fields.name("type")
        raise ApiError(
            400, f"{where} is {shown(kind)}, expected text, json_object, json_schema, regex or choice", param=where
        )
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
    return _bounded(lambda: Constraint.json(schema), where, "schema")


def _bounded(make: Callable[[], Constraint], where: str, kind: str) -> Wanted:
    try:
        return Wanted(make(), where)
    except UsageError as error:
        raise _refused(error, where, kind) from error


def _refused(error: Exception, where: str, kind: str) -> ApiError:
    code = "invalid_json_schema" if kind == "schema" else f"invalid_{kind}"
    return ApiError(400, f"{where}: {told(error).message}", param=where, code=code)
