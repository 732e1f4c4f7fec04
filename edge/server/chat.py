"""`/v1/chat/completions`: its request, its answer, and its answer in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edge.server.answering import Done, Text, TokenScore
from edge.server.constraints import read_response_format
from edge.server.conversation import Item, read_messages
from edge.server.errors import ApiError
from edge.server.fields import Fields, shown
from edge.server.limits import Limits
from edge.server.replies import event
from edge.server.request import Ask, read_image, read_max_tokens, read_model, read_sampling

_IGNORED = (
    "metadata",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
)


def read(fields: Fields, names: tuple[str, ...], limits: Limits) -> Ask:
    """Raises ApiError on what is not the protocol's, or cannot be done."""
    model = read_model(fields, names)
    messages = fields.items("messages")
    if not messages:
        raise ApiError(400, "messages is missing or empty", param="messages")
    fields.only("n", 1, "one answer is made")
    for key in ("frequency_penalty", "presence_penalty"):
        fields.only(key, 0, "only repeat_penalty is supported")
    fields.only("logit_bias", {}, "it is not supported")
    fields.only("tools", [], "tools are not supported")
    fields.only("tool_choice", "none", "tools are not supported")
    fields.only("functions", [], "functions are not supported")
    fields.only("function_call", "none", "functions are not supported")
    fields.only("modalities", ["text"], "answers are text")
    fields.ignore(_IGNORED)
    options = fields.nested("stream_options")
    asked = Ask(
        model=model,
        conversation=read_messages(messages, "messages", _part, limits),
        max_tokens=read_max_tokens(fields, ("max_completion_tokens", "max_tokens"), limits),
        sampling=read_sampling(fields),
        stop=fields.texts("stop", limits.stops),
        top_logprobs=_logprobs(fields),
        constraint=read_response_format(fields.nested("response_format")),
        stream=fields.flag("stream"),
        include_usage=options is not None and options.flag("include_usage"),
    )
    if options is not None:
        options.ignore(("include_obfuscation",))
        options.end()
    fields.end()
    return asked


def _logprobs(fields: Fields) -> int | None:
    wanted, top = fields.flag("logprobs"), fields.integer("top_logprobs", 0, 20)
    if top and not wanted:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    return (top or 0) if wanted else None


def _part(part: Fields) -> Item:
    kind = part.needed_text("type")
    if kind == "text":
        return part.needed_text("text")
    if kind == "image_url":
        return read_image(part, "image_url")
    raise ApiError(400, f"{part.name('type')} is {shown(kind)}, expected text or image_url", param=part.name("type"))


class Reply:
    """The answer to one request. `created`: seconds since the epoch."""

    def __init__(self, ask: Ask, name: str, created: int) -> None:
        self._ask = ask
        self._common = {"id": f"chatcmpl-{name}", "created": created, "model": ask.model}

    def whole(self, texts: Sequence[Text], done: Done) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": done.answer.text, "refusal": None},
            "logprobs": self._logprobs([score for text in texts for score in text.scores]),
            "finish_reason": done.finish_reason,
        }
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [choice],
            "usage": done.usage,
            "timings": done.timings,
        }

    def begin(self) -> Iterator[bytes]:
        yield event(self._chunk({"role": "assistant", "content": ""}))

    def text(self, text: Text) -> Iterator[bytes]:
        yield event(self._chunk({"content": text.text}, logprobs=self._logprobs(text.scores)))

    def end(self, done: Done) -> Iterator[bytes]:
        yield event(self._chunk({}, finish_reason=done.finish_reason, timings=done.timings))
        if self._ask.include_usage:
            yield event({**self._chunk({}), "choices": [], "usage": done.usage})
        yield event("[DONE]")

    def error(self, error: ApiError) -> Iterator[bytes]:
        yield event(error.to_json())

    def _chunk(
        self,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        timings: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        more: dict[str, Any] = {"usage": None} if self._ask.include_usage else {}
        more |= {"timings": timings} if timings else {}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice], **more}

    def _logprobs(self, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        if self._ask.top_logprobs is None:
            return None
        return {"content": [_score(score) for score in scores], "refusal": None}


def _score(score: TokenScore) -> dict[str, Any]:
    return {**_likely(score), "top_logprobs": [_likely(other) for other in score.top]}


def _likely(score: TokenScore) -> dict[str, Any]:
    return {
        "token": score.spelling.decode("utf-8", "replace"),
        "logprob": score.logprob,
        "bytes": list(score.spelling),
    }
