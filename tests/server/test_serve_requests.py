"""Bad input: each gets the error object, a right status and the name of the field; the server goes on."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest
from fakes import write_model_bundle
from PIL import Image
from serving import Served, asked, photo, served, uri

MESSAGES = [{"role": "user", "content": "Why?"}]
CHAT = "/v1/chat/completions"


def chat_with(**fields: Any) -> dict[str, Any]:
    return {"messages": MESSAGES, "max_tokens": 4, **fields}


def shown(url: object) -> dict[str, Any]:
    return chat_with(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": url}]}])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "messages"),
    *((chat_with(messages=value), "messages") for value in ([], "Why?", 3, {}, None)),
    *((chat_with(messages=[value]), "messages[0]") for value in ("Why?", 3, [], None)),
    (chat_with(messages=[{"content": "Why?"}]), "messages[0].role"),
    (chat_with(messages=[{"role": "robot", "content": "Why?"}]), "messages[0].role"),
    (chat_with(messages=[{"role": 3, "content": "Why?"}]), "messages[0].role"),
    *((chat_with(messages=[{"role": "user", "content": v}]), "messages[0].content") for v in (None, 3, {}, [])),
    (chat_with(messages=[{"role": "user", "content": [3]}]), "messages[0].content[0]"),
    (chat_with(messages=[{"role": "user", "content": [{"text": "Why?"}]}]), "messages[0].content[0].type"),
    (chat_with(messages=[{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
    (chat_with(messages=[{"role": "user", "content": [{"type": "video"}]}]), "messages[0].content[0].type"),
    (chat_with(messages=[{"role": "user", "content": "Why?", "mood": "sad"}]), "messages[0].mood"),
    (chat_with(messages=[{"role": "assistant", "content": "Because."}]), "messages[0]"),
    (chat_with(messages=[*MESSAGES, {"role": "assistant", "content": "Because."}]), "messages"),
    (chat_with(messages=[{"role": "system", "content": "Be brief."}]), "messages"),
    (chat_with(messages=[*MESSAGES, {"role": "system", "content": "Be brief."}]), "messages[1]"),
    (chat_with(messages=MESSAGES * 1001), "messages"),
    (chat_with(messages=[{"role": "system", "content": asked("", photo())[0]["content"]}]), "messages[0].content"),
    (chat_with(messages=[{"role": "assistant", "tool_calls": [{}], "content": ""}]), "messages[0].tool_calls"),
    (chat_with(model=3), "model"),
    *((chat_with(max_tokens=value), "max_tokens") for value in (0, -1, 1.5, "8", True, [], 2**31, 10**400)),
    *((chat_with(max_completion_tokens=value), "max_completion_tokens") for value in (0, "8")),
    *((chat_with(temperature=value), "temperature") for value in (-0.1, 2.1, "1", True, [], 10**400)),
    *((chat_with(top_p=value), "top_p") for value in (-0.1, 1.1, "1")),
    *((chat_with(top_k=value), "top_k") for value in (-1, 0.5, "1")),
    *((chat_with(repeat_penalty=value), "repeat_penalty") for value in (-1, 0, "1")),
    *((chat_with(seed=value), "seed") for value in (-1, 0.5, "1", 2**64)),
    *((chat_with(stop=value), "stop") for value in (3, [3], ["a"] * 5, {})),
    *((chat_with(n=value), "n") for value in (2, 0, -1, "1")),
    *((chat_with(stream=value), "stream") for value in (1, "true", [])),
    (chat_with(stream=True, stream_options=True), "stream_options"),
    (chat_with(stream=True, stream_options={"more": True}), "stream_options.more"),
    *((chat_with(logprobs=value), "logprobs") for value in (1, "true")),
    *((chat_with(logprobs=True, top_logprobs=value), "top_logprobs") for value in (-1, 21, "1")),
    (chat_with(top_logprobs=2), "top_logprobs"),
    (chat_with(frequency_penalty=0.5), "frequency_penalty"),
    (chat_with(logit_bias={"5": 100}), "logit_bias"),
    (chat_with(tools=[{"type": "function"}]), "tools"),
    (chat_with(modalities=["audio"]), "modalities"),
    (chat_with(response_format="json"), "response_format"),
    (chat_with(response_format={"type": "xml"}), "response_format.type"),
    *(
        (chat_with(response_format={"type": "json_schema", "json_schema": value}), f"response_format.json_schema{at}")
        for value, at in ((None, ""), (3, ""), ({}, ".schema"), ({"schema": True}, ".schema"))
    ),
    (
        chat_with(response_format={"type": "json_schema", "json_schema": {"schema": {}, "more": 1}}),
        "response_format.json_schema.more",
    ),
    (chat_with(response_format={"type": "json_object", "json_schema": {}}), "response_format.json_schema"),
    (chat_with(response_format={"type": "regex"}), "response_format.pattern"),
    (chat_with(response_format={"type": "choice", "choices": [1]}), "response_format.choices"),
    (chat_with(tempreature=1), "tempreature"),
    *((shown(value), "messages[0].content[0].image_url") for value in (None, 3, [])),
    *((shown({"url": value}), "messages[0].content[0].image_url.url") for value in (None, 3, "", "cat.png")),
    *(
        (shown({"url": value}), "messages[0].content[0].image_url.url")
        for value in (
            "/etc/passwd",
            "file:///etc/passwd",
            "../../etc/passwd",
            "ftp://example.org/a.png",
            "http://127.0.0.1/a.png",
            "https://example.org/a.png",
            "data:",
            "data:image/png;base64",
            "data:image/png,hello",
            "data:text/html;base64,aGVsbG8=",
            "data:image/png;base64,",
            "data:image/png;base64,aGVsbG8",
            "data:image/png;base64,!!!!",
            "data:image/png;base64,aGVs\u00e4bG8=",
            uri(b"hello, this is no picture"),
            uri(photo()[:60]),
            uri(photo(format="JPEG")[:100], "image/jpeg"),
            uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
            uri(b"%!PS-Adobe-3.0 EPSF-3.0\n", "image/x-eps"),
        )
    ),
]


@pytest.mark.parametrize(("body", "param"), WRONG)
def test_a_wrong_field_is_named(server: Served, body: dict[str, Any], param: str) -> None:
    got = server.post(CHAT, body)
    assert got.status == 400, got.body
    assert got.error["param"] == param
    assert got.error["type"] == "invalid_request_error"
    assert len(got.body) < 1000


@pytest.mark.parametrize("key", ["max_tokens", "temperature", "seed"])
def test_a_number_beyond_all_others(server: Served, key: str) -> None:
    got = server.post(CHAT, b'{"messages": [{"role": "user", "content": "Why?"}], "%s": 1e999}' % key.encode())
    assert (got.status, got.error["param"]) == (400, key)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": NaN}',
        b'{"max_tokens": Infinity, "messages": []}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"max_tokens": ' + b"9" * 10_000 + b"}",
    ],
)
def test_what_is_no_json_object(server: Served, body: bytes) -> None:
    got = server.post(CHAT, body)
    assert (got.status, got.error["code"]) == (400, "invalid_json")


def test_a_model_that_is_not_served(server: Served) -> None:
    got = server.chat(MESSAGES, model="gpt-" + "4" * 1000)
    assert (got.status, got.error["code"], got.error["param"]) == (404, "model_not_found", "model")
    assert len(got.body) < 500


def test_a_prompt_that_is_too_long(server: Served) -> None:
    for text in ("Why? " * 100, "x" * 10_000_000):
        got = server.chat([{"role": "user", "content": text}])
        assert (got.status, got.error["code"]) == (400, "context_length_exceeded")
        assert "400" in got.error["message"]


@pytest.fixture(scope="module")
def dividing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of a bundle that cuts images into 40 tiles at most."""
    bundle = write_model_bundle(tmp_path_factory.mktemp("dividing") / "tiny", context=400).path
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["image"] |= {"fit": "stretch", "views": {"tiles": [1, 40], "image_tokens": None}}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with served(bundle) as found:
        yield found


def test_a_picture_counts_in_all_its_views(dividing: Served) -> None:
    """What does not fit the context is refused before any picture is encoded."""
    square, strip = photo(size=(28, 28)), photo(seed=2, size=(560, 14))  # a view, and 40 tiles with the whole
    one, whole, both = (
        dividing.chat(asked("Why?", *pictures), max_tokens=4) for pictures in ([square], [strip], [square, strip])
    )
    counts = [got.json["usage"]["prompt_tokens_details"]["image_tokens"] for got in (one, whole, both)]
    assert counts == [4, 41 * 4, 42 * 4]
    got = dividing.chat(asked("Why?", *(photo(seed=seed, size=(560, 14)) for seed in (3, 4, 5))), max_tokens=4)
    assert (got.status, got.error["code"], got.error["param"]) == (400, "context_length_exceeded", "messages")
    needed = whole.json["usage"]["prompt_tokens"] + 2 * 41 * 4
    assert got.error["message"].startswith(f"messages needs {needed + 2} tokens")
    model = dividing.service.models["tiny"]
    assert model.known(sha256(photo(seed=5, size=(560, 14))).hexdigest()) is None


def test_too_many_pictures(server: Served) -> None:
    got = server.chat(asked("Why?", *[photo()] * 9))
    assert got.status == 400 and "9 images" in got.error["message"]


def test_a_picture_of_too_many_pixels_is_not_decoded(server: Served) -> None:
    flat = io.BytesIO()
    Image.new("L", (9000, 6000)).save(flat, "PNG")
    got = server.chat(asked("Why?", flat.getvalue()))
    assert (got.status, got.error["code"]) == (400, "invalid_image")
    assert "9000x6000" in got.error["message"]


def test_words_that_no_encoding_holds_are_answered(server: Served) -> None:
    assert server.chat([{"role": "user", "content": "\ud800 \udfff \x00"}]).status == 200
    assert server.post(CHAT, chat_with(**{"\ud800": 1})).status == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/files", 404),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/page/..%2fapp.py", 404),
        ("GET", "/page/../app.py", 404),
        ("GET", "/page//etc/passwd", 404),
        ("GET", "//evil.example/", 404),
        ("GET", "/%00", 404),
        ("DELETE", "/v1/models/tiny", 405),
    ],
)
def test_paths_and_methods_that_are_not_there(server: Served, method: str, path: str, status: int) -> None:
    got = server.request(method, path)
    assert got.status == status
    assert got.error["message"]


def test_a_body_of_another_type_is_not_read(server: Served) -> None:
    """A form of a foreign page cannot send JSON's own type."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", ""):
        assert server.post(CHAT, chat_with(), content_type=kind).status == 415
    assert server.post(CHAT, chat_with(), content_type="application/json; charset=utf-8").status == 200


def test_base64_with_other_settings_is_read(server: Served) -> None:
    data = base64.b64encode(photo()).decode()
    for head in ("data:;base64,", "DATA:IMAGE/PNG;BASE64,", "data:image/png;charset=utf-8;base64,"):
        assert server.post(CHAT, shown({"url": head + data})).status == 200


def test_an_engine_that_fails_tells_no_paths(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.errors import EngineError

    def fail(*_: object, **__: object) -> None:
        raise EngineError("/secret/decoder.onnx failed", hint="edge verify /secret")

    session = server.service.models["tiny"].session
    monkeypatch.setattr(session, "converse", fail)
    got = server.chat(MESSAGES)
    assert (got.status, got.error["type"]) == (500, "server_error")
    assert b"secret" not in got.body
    streamed = server.chat(MESSAGES, stream=True)
    assert streamed.events[-1]["error"]["code"] == "internal_error"
    monkeypatch.undo()
    assert server.chat(MESSAGES).status == 200


def test_text_only_bundles_say_that_they_see_nothing(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.bundle.manifest import Manifest

    monkeypatch.setattr(Manifest, "sees", False)
    got = server.chat(asked("Why?", photo(50)))
    assert got.status == 400 and "no vision part" in got.error["message"]
    assert server.chat(MESSAGES).status == 200
