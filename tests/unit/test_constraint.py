"""What an answer may be held to, before anything is compiled."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import UsageError
from edge.inference import constraint as module
from edge.inference.constraint import Constraint, constraint

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["#", "#/$defs/a"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["$ref", "allOf", "anyOf", "$defs", "properties", "a"]) | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def test_a_mapping_is_a_schema() -> None:
    assert constraint(None) is None
    assert constraint({"type": "object"}) == Constraint("schema", '{"type": "object"}')
    assert constraint(UserDict({"type": "object"})) == Constraint("schema", '{"type": "object"}')
    given = Constraint.choice(["a"])
    assert constraint(given) is given


def test_the_librarys_own_settings_are_left_out() -> None:
    assert Constraint.json({"x-guidance": {"lenient": True}, "type": "object"}).source == '{"type": "object"}'


@given(values)
def test_any_value_is_taken_or_refused(value: Any) -> None:
    try:
        made = Constraint.json(value)
    except UsageError:
        return
    assert isinstance(value, dict)
    assert len(made.source) <= module.MOST_BYTES


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


def endless() -> dict[str, Any]:
    schema: dict[str, Any] = {}
    schema["items"] = schema
    return schema


def chain(length: int, of: str = "anyOf") -> dict[str, Any]:
    links = {f"d{n}": {of: [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]} for n in range(length)}
    return {"$defs": links, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ([], "is a list"),
        (True, "is a bool"),
        ({"const": {1, 2}}, "is not JSON"),
        ({"const": float("nan")}, "is not JSON"),
        ({"const": "\ud800"}, None),
        ({"const": "x" * module.MOST_BYTES}, r"has \d+ bytes, and at most 65536 are taken"),
        ({"enum": list(range(module.MOST_BYTES + 1))}, "has more than 65536 parts"),
        (nested(module.MOST_DEPTH), None),
        (nested(module.MOST_DEPTH + 1), "is nested more than 48 deep"),
        (endless(), "is nested more than 48 deep"),
        (chain(200), None),
        (chain(400), "has 401 references, and is more than 1000 deep by them"),
        (chain(8, "allOf"), None),
        (chain(40, "allOf"), "has more than 20000 parts in allOf and beside references"),
        ({"minProperties": 1}, None),
        ({"minProperties": 2}, "wants 2 properties and names 0"),
        ({"minProperties": 2, "required": ["a"]}, "wants 2 properties and names 1"),
        ({"minProperties": 2, "required": ["a", "b"]}, None),
        ({"minProperties": 2, "properties": {"a": {}, "b": {}}, "additionalProperties": False}, None),
        ({"items": {"minProperties": 3, "patternProperties": {}, "additionalProperties": False}}, "wants 3 properties"),
        ({"properties": {"minProperties": {"type": "integer"}}}, None),
    ],
)
def test_what_is_beyond_the_bounds_is_refused(schema: Any, why: str | None) -> None:
    if why is None:
        assert Constraint.json(schema).kind == "schema"
        return
    with pytest.raises(UsageError, match=f"the schema {why}") as caught:
        Constraint.json(schema)
    assert "docs/run.md" in str(caught.value.hint)


def test_a_reference_with_a_description_is_no_product() -> None:
    """As Pydantic writes them; many that lead to each other are none either."""
    names = [f"d{n}" for n in range(12)]
    leads = {name: {"$ref": f"#/$defs/{name}", "description": "another"} for name in names}
    assert Constraint.json({"$defs": {name: {"properties": leads} for name in names}, "$ref": "#/$defs/d0"})


def test_where_a_pointer_leads() -> None:
    schema = {"$defs": {"a/b": {"~": [{}, {"type": "null"}]}}}
    assert module._target(schema, "#/$defs/a~1b/~0/1") == {"type": "null"}
    assert module._target(schema, "#") is schema
    for nowhere in ("#/$defs/a~1b/~0/2", "#/$defs/a~1b/~0/٣", "#name", "http://x/y#/$defs", "#/$defs/x", ""):
        assert module._target(schema, nowhere) in (None, schema)


@pytest.mark.parametrize("pattern", ["", None, 5, "a" * (module.MOST_BYTES + 1), "\ud800"])
def test_what_is_no_pattern(pattern: Any) -> None:
    with pytest.raises(UsageError, match="the regex "):
        Constraint.regex(pattern)


@pytest.mark.parametrize("options", ["yes", [], [""], ["a", 1], ["a"] * 1001, ["x" * 40_000, "y" * 40_000], ["\ud800"]])
def test_what_is_no_choice(options: Any) -> None:
    with pytest.raises(UsageError, match="the choice "):
        Constraint.choice(options)


def test_a_choice_names_each_once() -> None:
    assert Constraint.choice(("yes", "no", "yes")).source == '["yes", "no"]'
