"""Answers that must be something: held to it whole, streamed and closed; what cannot be followed is a 400."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from serving import Got, Served, asked, photo, uri

import edge
from edge.inference.sampling import Sampling
from edge.inference.session import Session

PLATE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "plate": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
        "seen": {"enum": ["day", "night"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 20},
    },
    "required": ["plate", "seen", "count"],
    "additionalProperties": False,
}
OBJECT: dict[str, Any] = {"type": "json_object"}
CHAT = "/v1/chat/completions"


def held_to(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "found", "strict": True, "schema": schema}}


def text(got: Got) -> str:
    assert got.status == 200, got.body
    found: str = got.json["choices"][0]["message"]["content"]
    return found


@pytest.fixture(scope="module")
def session(served_bundle: Path) -> Session:
    return edge.load(served_bundle, engine="null")


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_is_what_the_schema_says(server: Served, session: Session, seed: int) -> None:
    fields = {"response_format": held_to(PLATE), "max_tokens": 80, "temperature": 1, "seed": seed}
    sampling = Sampling(temperature=1.0, seed=seed)
    expected = session.ask(photo(1), "Which?", max_tokens=80, sampling=sampling, schema=PLATE)
    got = server.chat(asked("Which?", photo(1)), **fields)
    assert text(got) == expected
    jsonschema.validate(json.loads(expected), PLATE)
    assert got.json["choices"][0]["finish_reason"] == "stop"
    chunks = server.chat(asked("Which?", photo(1)), stream=True, **fields).events[:-1]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == expected
    response = {
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_image", "image_url": uri(photo(1))},
                    {"type": "input_text", "text": "Which?"},
                ],
            }
        ]
    }
    response |= {"text": {"format": {"type": "json_schema", "name": "found", "schema": PLATE}}, "max_output_tokens": 80}
    response |= {"temperature": 1, "seed": seed}
    whole = server.post("/v1/responses", response).json
    assert (whole["status"], whole["output"][0]["content"][0]["text"]) == ("completed", expected)
    events = server.post("/v1/responses", {**response, "stream": True}).events
    assert "".join(event["delta"] for event in events if "delta" in event) == expected
    frame = {"image": uri(photo(1)), "question": "Which?", **fields}
    assert server.post("/v1/frames", frame).json["answer"] == expected


@pytest.mark.parametrize("most", [12, 13, 20, 60])
def test_an_object_is_closed_where_its_tokens_end(server: Served, most: int) -> None:
    """One token is a byte here, and the model never ends a string by itself for long."""
    schema = {"type": "object", "properties": {"text": {"type": "string", "minLength": 1}}, "required": ["text"]}
    fields = {"temperature": 1.5, "seed": 3}
    got = server.chat(asked("What?"), response_format=held_to(schema), max_tokens=most, **fields)
    jsonschema.validate(json.loads(text(got)), schema)
    assert got.json["usage"]["completion_tokens"] <= most
    assert got.json["choices"][0]["finish_reason"] == "length"
    *_, last, end = server.chat(
        asked("What?"), response_format=held_to(schema), max_tokens=most, stream=True, **fields
    ).events
    assert (last["choices"][0]["finish_reason"], end) == ("length", "[DONE]")
    text_field = {"format": {"type": "json_schema", "name": "told", "schema": schema}}
    whole = server.post(
        "/v1/responses", {"input": "What?", "text": text_field, "max_output_tokens": most, **fields}
    ).json
    assert whole["output"][0]["content"][0]["text"] == text(got)
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_any_object_may_be_asked_for(server: Served) -> None:
    for most in (2, 3, 60):
        assert isinstance(json.loads(text(server.chat(asked("What?"), response_format=OBJECT, max_tokens=most))), dict)


def test_patterns_and_choices(server: Served) -> None:
    for seed in range(4):
        fields = {"temperature": 1, "seed": seed, "max_tokens": 12}
        found = text(
            server.chat(asked("When?"), response_format={"type": "regex", "pattern": "[0-9]{2}:[0-9]{2}"}, **fields)
        )
        assert re.fullmatch("[0-9]{2}:[0-9]{2}", found)
        choice = {"type": "choice", "choices": ["yes", "no", "unsure"]}
        assert text(server.chat(asked("Is it?"), response_format=choice, **fields)) in choice["choices"]


def test_probabilities_are_told_of_the_tokens_that_are_said(server: Served) -> None:
    got = server.chat(asked("What?"), response_format=held_to(PLATE), max_tokens=60, logprobs=True, top_logprobs=2)
    scores = got.json["choices"][0]["logprobs"]["content"]
    assert "".join(score["token"] for score in scores) == text(got)


def test_any_text_may_be_asked_for(server: Served) -> None:
    assert text(server.chat(asked("Why?"), response_format={"type": "text"})) == text(server.chat(asked("Why?")))


@pytest.mark.parametrize(
    ("format", "at", "code", "message"),
    [
        (held_to({"type": "array", "uniqueItems": True}), "json_schema.schema", "invalid_json_schema", "uniqueItems"),
        (held_to({"not": {"type": "string"}}), "json_schema.schema", "invalid_json_schema", "not"),
        (held_to({"type": "strin"}), "json_schema.schema", "invalid_json_schema", "strin"),
        (held_to({"$ref": "http://127.0.0.1/a.json"}), "json_schema.schema", "invalid_json_schema", "not present"),
        (held_to({"enum": ["x" * 70_000]}), "json_schema.schema", "invalid_json_schema", "at most 65536"),
        (
            held_to({"type": "array", "items": {"$ref": "#"}, "minItems": 1}),
            "json_schema.schema",
            "invalid_json_schema",
            "no answer",
        ),
        ({"type": "regex", "pattern": "(a"}, "pattern", "invalid_regex", "unclosed group"),
        ({"type": "regex", "pattern": ""}, "pattern", "invalid_regex", "expected a pattern"),
        ({"type": "regex", "pattern": "((a{50}){50}){50}"}, "pattern", "invalid_regex", ""),
        ({"type": "choice", "choices": []}, "choices", "invalid_choice", "1 to 1000"),
        ({"type": "choice", "choices": ["a", ""]}, "choices", "invalid_choice", "not empty"),
        (held_to({"const": "far too long for so few"}), "json_schema.schema", None, "max_tokens is 8"),
        (held_to({"const": "x" * 500}), "json_schema.schema", "context_length_exceeded", "the context holds 400"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_a_stream_begins(
    server: Served, format: dict[str, Any], at: str, code: str, message: str
) -> None:
    for stream in (False, True):
        got = server.chat(asked("Why?"), response_format=format, stream=stream)
        assert got.status == 400, got.body
        assert (got.error["param"], got.error["code"]) == (f"response_format.{at}", code)
        assert message in got.error["message"] and len(got.body) < 1000
    server.wait(lambda: server.service.queue.held == 0)


def test_a_text_does_not_end_what_must_parse(server: Served) -> None:
    got = server.chat(asked("Why?"), response_format=OBJECT, stop=["}"])
    assert (got.status, got.error["param"]) == (400, "stop")


def test_without_its_library_the_install_is_told(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.delitem(sys.modules, "edge.inference.grammar", raising=False)
    monkeypatch.setattr(server.service.models["tiny"].session._guides, "_grammars", None)
    got = server.chat(asked("Why?"), response_format=OBJECT)
    assert (got.status, got.error["code"], got.error["param"]) == (400, "unsupported", "response_format.type")
    assert "pip install 'edge-vlm[schema]'" in got.error["message"]
