"""The server's own description, as OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge import __version__
from edge.inference.constraint import MOST_CHOICES
from edge.server.limits import Limits
from edge.server.request import MOST

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_URL: Schema = {"type": "string", "pattern": "^(data:image/|https?://)"}
_FLAG: Schema = {"type": "boolean"}
_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def document(limits: Limits) -> dict[str, Any]:
    answer, listing = {"type": "object"}, {"type": "object"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Edge VLM", "version": __version__},
        "security": [{"key": []}, {}],
        "paths": {
            "/health": {"get": _operation("Whether it answers", listing)},
            "/metrics": {"get": _operation("Counts and times, for Prometheus", _TEXT, kind="text/plain")},
            "/v1/models": {"get": _operation("The models", listing)},
            "/v1/models/{name}": {
                "get": {
                    **_operation("A model", listing),
                    "parameters": [{"name": "name", "in": "path", "required": True, "schema": _TEXT}],
                }
            },
            "/v1/chat/completions": {"post": _operation("Answer a conversation", answer, _chat(limits), streams=True)},
            "/v1/responses": {"post": _operation("Answer a conversation", answer, _response(limits), streams=True)},
            "/v1/frames": {"post": _operation("Look at a camera's latest picture", answer, _frame(limits))},
            "/v1/benchmarks": {
                "post": _operation("Measure a model", _TEXT, _object({"model": _TEXT}, ()), kind="text/event-stream")
            },
        },
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(
    summary: str,
    answer: Schema,
    body: Schema | None = None,
    *,
    kind: str = "application/json",
    streams: bool = False,
) -> dict[str, Any]:
    content: dict[str, Any] = {kind: {"schema": answer}}
    if streams:
        content["text/event-stream"] = {"schema": _TEXT}
    failure = {
        "description": "What was wrong",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    found: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "Done", "content": content}, "default": failure},
    }
    if body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return found


def _object(properties: Mapping[str, Schema], required: tuple[str, ...]) -> Schema:
    found: Schema = {"type": "object", "properties": dict(properties), "additionalProperties": False}
    return {**found, "required": list(required)} if required else found


def _sampling() -> dict[str, Schema]:
    return {
        "model": _TEXT,
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "top_p": {"type": "number", "minimum": 0, "maximum": 1},
        "top_k": {"type": "integer", "minimum": 0, "maximum": MOST},
        "repeat_penalty": {"type": "number", "minimum": 0.001, "maximum": 1000},
        "seed": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
    }


def _tokens() -> Schema:
    return {"type": "integer", "minimum": 1, "maximum": MOST}


def _stop(limits: Limits) -> Schema:
    return {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": limits.stops}]}


def _format(inside: str | None = "json_schema") -> Schema:
    """What an answer must be. `inside`: the field that holds the schema's; None: they stand beside the type."""
    described: dict[str, Schema] = {"schema": {"type": "object"}, "name": _TEXT, "description": _TEXT, "strict": _FLAG}
    choices = {"type": "array", "items": {**_TEXT, "minLength": 1}, "minItems": 1, "maxItems": MOST_CHOICES}
    schema = described if inside is None else {inside: _object(described, ("schema",))}
    return {
        "anyOf": [
            _object({"type": {"enum": ["text", "json_object"]}}, ("type",)),
            _object({"type": {"const": "json_schema"}, **schema}, ("type", inside or "schema")),
            _object({"type": {"const": "regex"}, "pattern": _TEXT}, ("type", "pattern")),
            _object({"type": {"const": "choice"}, "choices": choices}, ("type", "choices")),
        ]
    }


def _image(url: Schema, key: str, kind: str) -> Schema:
    return _object({"type": {"const": kind}, key: url, "detail": _TEXT}, ("type", key))


def _messages(parts: list[Schema], limits: Limits) -> Schema:
    content = {"anyOf": [_TEXT, {"type": "array", "items": {"anyOf": parts}, "minItems": 1}]}
    role = {"enum": ["system", "developer", "user", "assistant"]}
    message = _object({"role": role, "content": content, "name": _TEXT}, ("role", "content"))
    return {"type": "array", "items": message, "minItems": 1, "maxItems": limits.messages}


def _chat(limits: Limits) -> Schema:
    image = _object({"url": _URL, "detail": _TEXT}, ("url",))
    parts = [
        _object({"type": {"const": "text"}, "text": _TEXT}, ("type", "text")),
        _image(image, "image_url", "image_url"),
    ]
    properties: dict[str, Schema] = {
        **_sampling(),
        "messages": _messages(parts, limits),
        "max_tokens": _tokens(),
        "max_completion_tokens": _tokens(),
        "stop": _stop(limits),
        "n": {"const": 1},
        "stream": _FLAG,
        "stream_options": _object({"include_usage": _FLAG}, ()),
        "logprobs": _FLAG,
        "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
        "response_format": _format(),
        "user": _TEXT,
    }
    return _object(properties, ("messages",))


def _response(limits: Limits) -> Schema:
    parts: list[Schema] = [
        _object({"type": {"enum": ["input_text", "output_text"]}, "text": _TEXT}, ("type", "text")),
        _image(_URL, "image_url", "input_image"),
    ]
    properties: dict[str, Schema] = {
        **_sampling(),
        "input": {"anyOf": [_TEXT, _messages(parts, limits)]},
        "instructions": _TEXT,
        "max_output_tokens": _tokens(),
        "text": _object({"format": _format(None)}, ()),
        "stream": _FLAG,
    }
    return _object(properties, ("input",))


def _frame(limits: Limits) -> Schema:
    properties: dict[str, Schema] = {
        **_sampling(),
        "camera": {"type": "string", "minLength": 1, "maxLength": 128},
        "frame": {"type": "string", "minLength": 1, "maxLength": 128},
        "image": _URL,
        "question": _TEXT,
        "system": _TEXT,
        "max_tokens": _tokens(),
        "stop": _stop(limits),
        "response_format": _format(),
    }
    return _object(properties, ("image", "question"))
