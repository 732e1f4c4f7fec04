"""Chats: answers are the session's own, whole and in chunks, with what the protocol tells beside them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from serving import Got, Served, asked, photo, served, uri

import edge
from edge.inference.sampling import Sampling
from edge.inference.session import Session
from edge.inputs.views import Views
from edge.server.pictures import Pictures


@pytest.fixture(scope="module")
def session(served_bundle: Path) -> Session:
    return edge.load(served_bundle, engine="null")


def text(got: Got) -> str:
    assert got.status == 200, got.body
    found: str = got.json["choices"][0]["message"]["content"]
    return found


def test_an_answer_is_the_sessions(server: Served, session: Session) -> None:
    for question, pictures in (("Why?", []), ("What is it?", [photo(1)]), ("And?", [photo(1), photo(2)])):
        got = server.chat(asked(question, *pictures))
        assert text(got) == session.ask(pictures or None, question, max_tokens=8)
        answer = session.last
        found = got.json
        assert (found["object"], found["model"]) == ("chat.completion", "tiny")
        assert found["choices"][0]["finish_reason"] == ("length" if answer.stop_reason == "length" else "stop")
        assert found["usage"]["prompt_tokens"] == answer.prompt_tokens
        assert found["usage"]["completion_tokens"] == answer.generated_tokens
        assert found["usage"]["total_tokens"] == answer.prompt_tokens + answer.generated_tokens
        assert found["usage"]["prompt_tokens_details"]["image_tokens"] == 4 * len(pictures)
        assert found["timings"]["ttft_ms"] >= found["timings"]["prefill_ms"] > 0


def test_chunks_are_the_answer(server: Served) -> None:
    messages = asked("What is it?", photo(1))
    whole = server.chat(messages, max_tokens=20)
    got = server.chat(messages, max_tokens=20, stream=True, stream_options={"include_usage": True})
    assert got.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, end = got.events
    assert end == "[DONE]"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == whole.json["usage"]["completion_tokens"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == text(whole)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons[-1] == whole.json["choices"][0]["finish_reason"]
    assert set(reasons[:-1]) == {None}


def test_without_being_asked_no_usage_is_streamed(server: Served) -> None:
    events = server.chat(asked("Why?"), stream=True).events
    assert events[-2]["choices"][0]["finish_reason"] and "usage" not in events[-2]


def test_sampling_is_as_asked(server: Served, session: Session) -> None:
    sampling = Sampling(temperature=1.5, top_k=40, top_p=0.9, repeat_penalty=1.1, seed=7)
    expected = session.ask(None, "Why?", max_tokens=12, sampling=sampling)
    fields = {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "repeat_penalty": 1.1, "seed": 7}
    assert text(server.chat(asked("Why?"), max_tokens=12, **fields)) == expected
    greedy = text(server.chat(asked("Why?")))
    assert text(server.chat(asked("Why?"), temperature=2, top_p=0)) == greedy
    assert text(server.chat(asked("Why?"), top_p=0.5, seed=3)) == greedy  # the temperature is 0


def test_stops_end_an_answer(server: Served) -> None:
    whole = text(server.chat(asked("Why?"), max_tokens=30))
    stop = whole[5:7]
    got = server.chat(asked("Why?"), max_tokens=30, stop=[stop, "never this"])
    assert text(got) == whole[: whole.index(stop)]
    assert got.json["choices"][0]["finish_reason"] == "stop"
    assert text(server.chat(asked("Why?"), max_tokens=30, stop=stop)) == text(got)


def test_probabilities_of_tokens(server: Served) -> None:
    got = server.chat(asked("Why?"), logprobs=True, top_logprobs=3)
    content = got.json["choices"][0]["logprobs"]["content"]
    assert len(content) == got.json["usage"]["completion_tokens"]
    assert b"".join(bytes(token["bytes"]) for token in content).decode("utf-8", "replace") == text(got)
    for token in content:
        likely = [other["logprob"] for other in token["top_logprobs"]]
        assert len(likely) == 3 and likely == sorted(likely, reverse=True)
        assert token["logprob"] == likely[0]  # the most probable was taken
        assert sum(map(math.exp, likely)) < 1
    streamed = [
        c["choices"][0]["logprobs"]
        for c in server.chat(asked("Why?"), logprobs=True, top_logprobs=3, stream=True).events[:-1]
    ]
    assert [token for found in streamed if found for token in found["content"]] == content
    assert server.chat(asked("Why?"), logprobs=True).json["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert server.chat(asked("Why?")).json["choices"][0]["logprobs"] is None


def test_a_conversation_goes_on(server: Served, session: Session) -> None:
    chat = session.chat(photo(3), system="Be brief.")
    first = chat.ask("What is it?", max_tokens=6)
    messages = [{"role": "system", "content": "Be brief."}, *asked("What is it?", photo(3))]
    assert text(server.chat(messages, max_tokens=6)) == first
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "And?"}]
    got = server.chat(messages, max_tokens=6)
    assert got.json["usage"]["prompt_tokens_details"]["cached_tokens"] > 30


def test_messages_in_other_shapes_say_the_same(server: Served) -> None:
    """A question in several messages or parts is one; text before all pictures goes behind them."""
    parts = [{"type": "image_url", "image_url": {"url": uri(photo(1)), "detail": "low"}}]
    text_parts = [{"type": "text", "text": "What"}, {"type": "text", "text": "is it?"}]
    expected = server.chat([{"role": "user", "content": [*parts, {"type": "text", "text": "What\nis it?"}]}])
    for messages in (
        [{"role": "user", "content": [*parts, *text_parts]}],
        [{"role": "user", "content": [*text_parts, *parts]}],
        [{"role": "user", "content": parts}, {"role": "user", "content": text_parts}],
        [{"role": "user", "content": "What\nis it?"}, {"role": "user", "content": parts, "name": "Ann"}],
    ):
        got = server.chat(messages)
        assert text(got) == text(expected)
        assert got.json["usage"]["prompt_tokens"] == expected.json["usage"]["prompt_tokens"]


def test_system_messages_are_one(server: Served) -> None:
    two = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Ok."}]},
    ]
    one = [{"role": "system", "content": "Be brief.\n\nOk."}]
    assert server.chat([*two, *asked("Why?")]).json["usage"] | {"prompt_tokens_details": None} == server.chat(
        [*one, *asked("Why?")]
    ).json["usage"] | {"prompt_tokens_details": None}


def test_a_picture_that_is_known_is_neither_decoded_nor_encoded(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    views = Pictures.views

    def counted(pictures: Pictures, data: bytes, see: Callable[[bytes], Views], param: str) -> Views:
        decoded.append(param)
        return views(pictures, data, see, param)

    monkeypatch.setattr(Pictures, "views", counted)
    fresh = photo(99, (400, 300))
    before = server.chat(asked("Why?", fresh)).json["timings"]
    after = server.chat(asked("Why?", fresh)).json["timings"]
    assert before["vision_ms"] > 0 == after["vision_ms"]
    assert len(decoded) == 1


def test_models_are_listed_with_their_proof(server: Served, served_bundle: Path) -> None:
    (model,) = server.get("/v1/models").json["data"]
    assert model == server.get("/v1/models/tiny").json
    assert model["id"] == "tiny" and model["object"] == "model"
    assert [part["covers"] for part in model["edge"]["parts"]] == [["vision", "projector"], ["decoder"]]
    assert str(served_bundle.parent) not in server.get("/v1/models").body.decode()
    assert server.get("/v1/models/other").error["code"] == "model_not_found"


def test_two_bundles_are_two_models(served_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "twin").symlink_to(served_bundle)
    with served(served_bundle, tmp_path / "twin") as both:
        assert [model["id"] for model in both.get("/v1/models").json["data"]] == ["tiny", "twin"]
        answers = [both.chat(asked("Why?"), model=name) for name in ("tiny", "twin")]
        assert text(answers[0]) == text(answers[1])
        assert [got.json["model"] for got in answers] == ["tiny", "twin"]
        assert both.chat(asked("Why?")).error["param"] == "model"


def test_a_stop_of_the_models_own_is_kept(server: Served, session: Session) -> None:
    """Fields that change no answer change none."""
    ignored = {"user": "a", "store": False, "metadata": {"a": "b"}, "tools": [], "n": 1, "seed": None, "stop": None}
    assert text(server.chat(asked("Why?"), **ignored)) == session.ask(None, "Why?", max_tokens=8)
