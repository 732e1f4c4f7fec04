"""A client's JSON, field by field: each of the type and range that is expected, and none that is not known."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from edge.server.errors import ApiError


def parse(body: bytes) -> Fields:
    """A JSON object. Raises ApiError."""
    try:
        data = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError, and so is a number too long
        raise ApiError(400, f"the body is not JSON: {str(error) or 'nested too deeply'}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise ApiError(400, f"the body is {_kind(data)}, expected an object", code="invalid_json")
    return Fields(data)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


class Fields:
    """An object whose fields are taken one after another. null counts as absent."""

    def __init__(self, data: Mapping[str, Any], where: str = "") -> None:
        self._left = dict(data)
        self._where = where

    def name(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def take(self, key: str) -> Any:
        return self._left.pop(key, None)

    def text(self, key: str) -> str | None:
        value = self.take(key)
        if value is not None and not isinstance(value, str):
            self._wrong(key, value, "a string")
        return value

    def needed_text(self, key: str) -> str:
        value = self.text(key)
        if value is None:
            raise ApiError(400, f"{self.name(key)} is missing", param=self.name(key))
        return value

    def flag(self, key: str) -> bool:
        value = self.take(key)
        if value is not None and not isinstance(value, bool):
            self._wrong(key, value, "true or false")
        return bool(value)

    def integer(self, key: str, low: int, high: int) -> int | None:
        value = self.take(key)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():  # some clients know one kind of number only
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            self._wrong(key, value, f"an integer from {low} to {high}")
        return int(value)

    def number(self, key: str, low: float, high: float) -> float | None:
        value = self.take(key)
        if value is None:
            return None
        if type(value) not in (int, float) or not low <= value <= high:  # 1e999 is infinity, and above
            self._wrong(key, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def items(self, key: str) -> list[Any] | None:
        value = self.take(key)
        if value is not None and not isinstance(value, list):
            self._wrong(key, value, "an array")
        return value

    def nested(self, key: str) -> Fields | None:
        value = self.take(key)
        return None if value is None else as_fields(value, self.name(key))

    def texts(self, key: str, most: int) -> tuple[str, ...]:
        """A string, or an array of so many of them."""
        value = self.take(key)
        found = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(found, list) or len(found) > most or not all(isinstance(item, str) for item in found):
            self._wrong(key, value, f"a string or an array of at most {most}")
        return tuple(found)

    def only(self, key: str, usual: object, why: str) -> None:
        """A field that may be there, with its usual value."""
        value = self.take(key)
        if value is not None and value != usual:
            raise ApiError(400, f"{self.name(key)} is {shown(value)}; {why}", param=self.name(key), code="unsupported")

    def ignore(self, keys: Collection[str]) -> None:
        """They change no answer."""
        for key in keys:
            self._left.pop(key, None)

    def end(self) -> None:
        """Raises ApiError on what is left: a field that is not known may have changed the answer."""
        if left := next((key for key, value in self._left.items() if value is not None), None):
            name = self.name(left)[:80]
            raise ApiError(400, f"no such field: {name}", param=name, code="unknown_field")

    def _wrong(self, key: str, value: object, expected: str) -> NoReturn:
        name = self.name(key)
        raise ApiError(400, f"{name} is {shown(value)}, expected {expected}", param=name, code="invalid_type")


def as_fields(value: object, where: str) -> Fields:
    if not isinstance(value, dict):
        raise ApiError(400, f"{where} is {shown(value)}, expected an object", param=where, code="invalid_type")
    return Fields(value, where)


def shown(value: object) -> str:
    """A value in a message: short ones as they are."""
    if isinstance(value, str | int | float | bool) or value is None:
        text = json.dumps(value)
        return text if len(text) <= 60 else f"{text[:57]}…"
    return _kind(value)


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
