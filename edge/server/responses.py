"""`/v1/responses`: the text-and-image core of it, whole and as a stream of typed events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edge.server.answering import Done, Text
from edge.server.constraints import read_text_format
from edge.server.conversation import Item, read_messages
from edge.server.errors import ApiError
from edge.server.fields import Fields, shown
from edge.server.limits import Limits
from edge.server.replies import event
from edge.server.request import Ask, read_image, read_max_tokens, read_model, read_sampling

_IGNORED = (
    "max_tool_calls",
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "reasoning",
    "safety_identifier",
    "service_tier",
    "store",
    "stream_options",
    "truncation",
    "user",
)


def read(fields: Fields, names: tuple[str, ...], limits: Limits) -> Ask:
    """Raises ApiError on what is not the protocol's, or cannot be done."""
    model, given = read_model(fields, names), fields.take("input")
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, f"input is {shown(given)}, expected a string or an array of messages", param="input")
    for key in ("previous_response_id", "conversation", "prompt"):
        fields.only(key, None, "nothing is kept: send the whole conversation")
    fields.only("tools", [], "tools are not supported")
    fields.only("tool_choice", "none", "tools are not supported")
    fields.only("background", False, "answers are not kept")
    fields.only("include", [], "nothing more can be included")
    fields.only("top_logprobs", 0, "probabilities are given by /v1/chat/completions")
    fields.ignore(_IGNORED)
    conversation = read_messages(messages, "input", _part, limits)
    if (told := fields.text("instructions")) is not None:
        conversation.system = told if conversation.system is None else f"{told}\n\n{conversation.system}"
    asked = Ask(
        model=model,
        conversation=conversation,
        max_tokens=read_max_tokens(fields, ("max_output_tokens",), limits),
        sampling=read_sampling(fields),
        constraint=read_text_format(fields.nested("text")),
        stream=fields.flag("stream"),
    )
    fields.end()
    return asked


def _part(part: Fields) -> Item:
    kind = part.needed_text("type")
    if kind in ("input_text", "output_text"):
        part.ignore(("annotations", "logprobs"))
        return part.needed_text("text")
    if kind == "input_image":
        part.only("file_id", None, "files are not kept: send the image in image_url")
        return read_image(part, "image_url")
    where = part.name("type")
    raise ApiError(400, f"{where} is {shown(kind)}, expected input_text or input_image", param=where)


class Reply:
    """The answer to one request. `created`: seconds since the epoch."""

    def __init__(self, ask: Ask, name: str, created: int) -> None:
        self._ask = ask
        self._name = name
        self._created = created
        self._number = 0  # of the next event
        self._said: list[str] = []

    def whole(self, texts: Sequence[Text], done: Done) -> dict[str, Any]:
        status = "completed" if done.finish_reason == "stop" else "incomplete"
        usage = {
            "input_tokens": done.usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": done.answer.cached_tokens},
            "output_tokens": done.usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": done.usage["total_tokens"],
        }
        item = self._item(status, [self._content(done.answer.text)])
        return {**self._response(status, [item]), "usage": usage, "timings": done.timings}

    def begin(self) -> Iterator[bytes]:
        response = self._response("in_progress", [])
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)
        yield self._event("response.output_item.added", output_index=0, item=self._item("in_progress", []))
        yield self._event("response.content_part.added", **self._place(), part=self._content(""))

    def text(self, text: Text) -> Iterator[bytes]:
        self._said.append(text.text)
        yield self._event("response.output_text.delta", **self._place(), delta=text.text, logprobs=[])

    def end(self, done: Done) -> Iterator[bytes]:
        text = "".join(self._said)
        whole = self.whole((), done)
        yield self._event("response.output_text.done", **self._place(), text=text, logprobs=[])
        yield self._event("response.content_part.done", **self._place(), part=self._content(text))
        yield self._event("response.output_item.done", output_index=0, item=whole["output"][0])
        yield self._event(f"response.{whole['status']}", response=whole)

    def error(self, error: ApiError) -> Iterator[bytes]:
        told = {"code": error.code or "server_error", "message": error.message}
        yield self._event("response.failed", response={**self._response("failed", []), "error": told})

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number - 1, **fields}, kind)

    def _place(self) -> dict[str, Any]:
        return {"item_id": f"msg_{self._name}", "output_index": 0, "content_index": 0}

    def _content(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "type": "message",
            "id": f"msg_{self._name}",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        sampling = self._ask.sampling
        return {
            "id": f"resp_{self._name}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": self._ask.model,
            "output": output,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": None,
            "max_output_tokens": self._ask.max_tokens,
            "metadata": {},
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": sampling.temperature,
            "tool_choice": "none",
            "tools": [],
            "top_p": sampling.top_p,
            "usage": None,
        }
