"""Responses: the same answers as a chat's, in that endpoint's words."""

from __future__ import annotations

from typing import Any

import pytest
from serving import Served, asked, photo, uri

PATH = "/v1/responses"
PICTURE = {"type": "input_image", "image_url": uri(photo(1))}


def said(text: str, *more: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*more, {"type": "input_text", "text": text}]}]


def test_an_answer_is_the_chats(server: Served) -> None:
    chat = server.chat([{"role": "system", "content": "Be brief."}, *asked("What is it?", photo(1))], max_tokens=9)
    fields = {"input": said("What is it?", PICTURE), "instructions": "Be brief.", "max_output_tokens": 9}
    found = server.post(PATH, fields).json
    (item,) = found["output"]
    assert item["content"][0]["text"] == chat.json["choices"][0]["message"]["content"]
    assert found["usage"]["input_tokens"] == chat.json["usage"]["prompt_tokens"]
    ended = chat.json["choices"][0]["finish_reason"] == "stop"
    assert found["status"] == item["status"] == ("completed" if ended else "incomplete")
    assert found["incomplete_details"] == (None if ended else {"reason": "max_output_tokens"})


def test_a_string_is_a_question(server: Served) -> None:
    text = server.post(PATH, {"input": "Why?", "max_output_tokens": 5}).json["output"][0]["content"][0]["text"]
    assert text == server.chat(asked("Why?"), max_tokens=5).json["choices"][0]["message"]["content"]


def test_a_conversation_is_sent_whole(server: Served) -> None:
    answered = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A dog."}]}
    turns = [*said("What?", PICTURE), answered, *said("Why?")]
    same = [*asked("What?", photo(1)), {"role": "assistant", "content": "A dog."}, *asked("Why?")]
    found = server.post(PATH, {"input": turns, "max_output_tokens": 5}).json
    assert found["usage"]["input_tokens"] == server.chat(same, max_tokens=5).json["usage"]["prompt_tokens"]


def test_events_tell_the_answer(server: Served) -> None:
    whole = server.post(PATH, {"input": "Why?", "max_output_tokens": 9}).json
    events = server.post(PATH, {"input": "Why?", "max_output_tokens": 9, "stream": True}).events
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", whole["status"]]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    text = whole["output"][0]["content"][0]["text"]
    assert "".join(event["delta"] for event in events if "delta" in event) == text == events[-4]["text"]
    last = events[-1]["response"]
    assert last["output"][0]["content"] == whole["output"][0]["content"]
    assert last["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


def test_a_failure_is_an_event(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no such thing")

    monkeypatch.setattr(server.service.models["tiny"].session, "converse", fail)
    events = server.post(PATH, {"input": "Why?", "stream": True}).events
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"] == "internal_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": 3}, "input"),
        ({"input": []}, "input"),
        ({"input": said("")[0]}, "input"),
        ({"input": [{"type": "function_call_output"}]}, "input[0].type"),
        ({"input": said("Why?", {"type": "input_file"})}, "input[0].content[0].type"),
        ({"input": said("Why?", {"type": "input_image", "file_id": "f"})}, "input[0].content[0].file_id"),
        ({"input": said("Why?", {"type": "input_image"})}, "input[0].content[0].image_url"),
        ({"input": "Why?", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "Why?", "tools": [{}]}, "tools"),
        ({"input": "Why?", "background": True}, "background"),
        ({"input": "Why?", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "Why?", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "Why?", "max_tokens": 5}, "max_tokens"),
    ],
)
def test_wrong_fields(server: Served, fields: dict[str, Any], param: str) -> None:
    got = server.post(PATH, fields)
    assert (got.status, got.error["param"]) == (400, param)
