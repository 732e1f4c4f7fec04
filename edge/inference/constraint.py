"""Constraint: what an answer must be, as JSON schema, regular expression or choice; bounded before it is compiled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from edge.errors import UsageError

MOST_BYTES = 1 << 16  # of a schema, pattern or list of choices
MOST_DEPTH = 48  # of a schema's JSON
MOST_LEVELS = 1000  # of a schema with all its references followed: the compiler recurses, on the stack
MOST_PARTS = 20_000  # of what must all hold at once, with its references followed: the compiler multiplies that out
MOST_CHOICES = 1000
HINT = "simplify it; docs/run.md lists what an answer can be held to"
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_SAYS_NOTHING = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "definitions"}
_IGNORED = "x-guidance"  # settings of the library's own, which would loosen what is promised here


@dataclass(frozen=True)
class Constraint:
    """Made by `json`, `regex` or `choice`; an answer is the whole text that is described, and nothing around it."""

    kind: Literal["schema", "regex", "choice"]
    source: str  # JSON text of the schema or of the choices; the expression

    @classmethod
    def json(cls, schema: Mapping[str, Any]) -> Self:
        """A JSON schema (2020-12); `{"type": "object"}` is any object. Raises UsageError beyond the bounds."""
        if not isinstance(schema, Mapping):
            raise _refused("schema", f"is a {type(schema).__name__}, and an object describes an answer")
        try:
            _bound_depth(schema)
            source = json.dumps({key: value for key, value in schema.items() if key != _IGNORED}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise _refused("schema", f"is not JSON: {error}") from error
        _bound_size("schema", source)
        _bound_levels(schema)
        _bound_product(schema)
        _require_countable(schema)
        return cls("schema", source)

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """The whole answer matches, in the syntax of Rust's `regex` crate: no look-around, no back references; `\\d` is
        0 to 9. Raises UsageError beyond the bounds."""
        if not isinstance(pattern, str) or not pattern:
            raise _refused("regex", f"is {pattern!r}, expected a pattern")
        _bound_size("regex", pattern)
        return cls("regex", pattern)

    @classmethod
    def choice(cls, options: Sequence[str]) -> Self:
        """One of some texts, none of them empty. Raises UsageError beyond the bounds."""
        if isinstance(options, str) or not all(isinstance(option, str) and option for option in options):
            raise _refused("choice", f"is {options!r}, expected texts that are not empty")
        if not 1 <= len(options) <= MOST_CHOICES:
            raise _refused("choice", f"has {len(options)} options, expected 1 to {MOST_CHOICES}")
        _bound_size("choice", "".join(options))
        return cls("choice", json.dumps(list(dict.fromkeys(options))))


def constraint(schema: Mapping[str, Any] | Constraint | None) -> Constraint | None:
    """A mapping is a JSON schema."""
    return schema if schema is None or isinstance(schema, Constraint) else Constraint.json(schema)


def _refused(what: str, why: str) -> UsageError:
    return UsageError(f"the {what} {why}", hint=HINT)


def _bound_size(what: str, source: str) -> None:
    try:
        size = len(source.encode())
    except UnicodeEncodeError as error:
        raise _refused(what, f"is no text: {error}") from error
    if size > MOST_BYTES:
        raise _refused(what, f"has {size} bytes, and at most {MOST_BYTES} are taken")


def _bound_depth(schema: Mapping[str, Any]) -> None:
    level: list[Any] = [schema]
    for _ in range(MOST_DEPTH):
        inside = [inner for outer in level for inner in _within(outer)]
        if len(inside) > MOST_BYTES:
            raise _refused("schema", f"has more than {MOST_BYTES} parts")
        level = [inner for inner in inside if isinstance(inner, Mapping | list | tuple)]
        if not level:
            return
    raise _refused("schema", f"is nested more than {MOST_DEPTH} deep")


def _bound_levels(schema: Mapping[str, Any]) -> None:
    """However references lead to each other, nothing is deeper than all their targets together."""
    targets = {str(node[key]) for node in _nodes(schema) for key in _REFERENCES if key in node}
    levels = MOST_DEPTH  # the schema itself
    for target in targets:
        found = _target(schema, target)
        levels += MOST_DEPTH if found is None else _depth(found)
        if levels > MOST_LEVELS:
            raise _refused("schema", f"has {len(targets)} references, and is more than {MOST_LEVELS} deep by them")


def _bound_product(schema: Mapping[str, Any]) -> None:
    parts = 0
    stack = [(node, frozenset[str]()) for node in _nodes(schema) if _conjuncts(node) > 1]
    while stack:
        node, followed = stack.pop()
        parts += 1
        if parts > MOST_PARTS:
            raise _refused("schema", f"has more than {MOST_PARTS} parts in allOf and beside references")
        stack += [(inner, followed) for inner in _within(node)]
        if isinstance(node, Mapping):
            targets = {str(node[key]) for key in _REFERENCES if key in node} - followed
            stack += [(_target(schema, target), followed | {target}) for target in targets]


def _require_countable(schema: Mapping[str, Any]) -> None:
    """A key that is not in the schema may be said twice, and counts as two."""
    for node in _nodes(schema):
        least, required = node.get("minProperties"), node.get("required")
        known = node.get("additionalProperties") is False and "patternProperties" not in node
        named = len(required) if isinstance(required, list | tuple) else 0
        if isinstance(least, int) and least > max(1, named) and not known:
            raise _refused("schema", f"wants {least} properties and names {named}; list them in required")


def _conjuncts(node: Mapping[str, Any]) -> int:
    """How many schemas an instance must satisfy at once."""
    several = node.get("allOf")
    others = node.keys() - _SAYS_NOTHING - {"allOf"}
    apart = {key for key in others if key in (*_REFERENCES, "anyOf", "oneOf")}
    plain = any(not key.startswith("$") for key in others - apart)
    return (len(several) if isinstance(several, list | tuple) else 0) + len(apart) + plain


def _target(schema: Mapping[str, Any], reference: str) -> Any:
    """What a JSON pointer into the schema leads to; None: some other reference, which the compiler may know."""
    node: Any = schema
    for step in reference.removeprefix("#").split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping) and step in node:
            node = node[step]
        elif isinstance(node, list | tuple) and step in map(str, range(len(node))):
            node = node[int(step)]
        else:
            return None
    return node if reference.startswith("#") else None


def _depth(node: Any) -> int:
    return 1 + max(map(_depth, _within(node)), default=0)


def _nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, Mapping):
        yield node
    for inner in _within(node):
        yield from _nodes(inner)


def _within(node: Any) -> list[Any]:
    if isinstance(node, Mapping):
        return list(node.values())
    return list(node) if isinstance(node, list | tuple) else []
