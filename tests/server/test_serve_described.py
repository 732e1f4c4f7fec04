"""The server's own description: it is valid, and what it allows is answered, what it does not is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from serving import Served, photo, uri

from edge.server import openapi
from edge.server.limits import Limits

DOCUMENT = openapi.document(Limits())
POSTS = [path for path, methods in DOCUMENT["paths"].items() if "post" in methods and path != "/v1/benchmarks"]
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PICTURE = uri(photo())


def body_of(path: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return found


def valid(schema: dict[str, Any], key: str = "") -> st.SearchStrategy[Any]:
    """Values that a schema of this document allows, pictures where one is looked for."""
    if "anyOf" in schema:
        return st.one_of([valid(one, key) for one in schema["anyOf"]])
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema["type"] == "string":
        if key in ("url", "image", "image_url"):
            return st.sampled_from([PICTURE, "https://example.org/a.png", "data:image/png;base64,AAAA"])
        return st.text(min_size=schema.get("minLength", 0), max_size=12)
    if schema["type"] == "boolean":
        return st.booleans()
    if schema["type"] == "integer":
        low, high = schema["minimum"], schema["maximum"]
        return st.integers(low, min(high, 6) if "tokens" in key else high)
    if schema["type"] == "number":
        return st.floats(schema["minimum"], schema["maximum"])
    if schema["type"] == "array":
        return st.lists(valid(schema["items"], key), min_size=schema.get("minItems", 0), max_size=3)
    properties = {name: valid(inner, name) for name, inner in schema.get("properties", {}).items()}
    required = set(schema.get("required", ()))
    return st.fixed_dictionaries(
        {name: s for name, s in properties.items() if name in required},
        optional={name: s for name, s in properties.items() if name not in required},
    )


@st.composite
def bent(draw: st.DrawFn, path: str) -> Any:
    """An allowed body with something put in another's place, somewhere."""
    body = draw(valid(body_of(path)))
    at: Any = body
    while True:
        keys = list(at) if isinstance(at, dict) else range(len(at))
        if not keys:
            return draw(ANYTHING)
        key = draw(st.sampled_from(keys))
        if isinstance(at[key], dict | list) and at[key] and draw(st.booleans()):
            at = at[key]
            continue
        at[key] = draw(ANYTHING)
        return body


def assert_answered(server: Served, path: str, body: Any) -> int:
    """200 with an answer, or the error object; and all slots are free afterwards."""
    data = json.dumps(body).encode()
    got = server.request("POST", path, data)
    if got.status == 200:
        assert got.body and b'"internal_error"' not in got.body
    else:
        assert got.status in (400, 404), got.body
        assert got.error["message"]
    server.wait(lambda: server.service.queue.held == 0)
    return got.status


def test_the_document_is_a_description_of_every_endpoint(server: Served) -> None:
    assert server.get("/openapi.json").json == json.loads(json.dumps(DOCUMENT))
    for path in POSTS:
        Draft202012Validator.check_schema(body_of(path))
    from edge.server.app import create

    routes = {route.path for route in create(server.service, lambda bundle: iter(())).routes}  # type: ignore[attr-defined]
    told = {re.sub(r"\{.*?\}", "{name}", path) for path in DOCUMENT["paths"]}
    assert {path for path in routes if not path.startswith("/page/")} - {"/", "/openapi.json"} == told


@pytest.mark.parametrize("path", POSTS)
def test_whatever_is_allowed_is_answered(server: Served, path: str) -> None:
    """Refused only where the model, the order of messages or a picture is at fault."""
    seen = set()

    @settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[*HealthCheck])
    @given(valid(body_of(path)))
    def check(body: Any) -> None:
        body.pop("model", None)
        if "messages" in body:  # of any roles, but a question comes last
            body["messages"].append({"role": "user", "content": "Why?"})
        seen.add(assert_answered(server, path, body))

    check()
    assert seen == {200, 400}


@pytest.mark.parametrize("path", POSTS)
def test_whatever_is_sent_is_answered(server: Served, path: str) -> None:
    @settings(max_examples=80, derandomize=True, deadline=None, suppress_health_check=[*HealthCheck])
    @given(st.one_of(bent(path), ANYTHING))
    def check(body: Any) -> None:
        assert_answered(server, path, body)

    check()
    assert server.get("/health").status == 200
