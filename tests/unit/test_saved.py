"""Conversations in files: what was saved is gone on with, and any other file is refused before it is trusted."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import write_model_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import edge
from edge.bundle import safetensors
from edge.bundle.manifest import Bundle
from edge.devices import whole_files
from edge.errors import EngineError, SessionError, UsageError
from edge.inference import saved
from edge.inference.chat import Chat
from edge.inference.session import Session
from edge.types import Decoder, Embeddings

CONTEXT = 400


def photo(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3)).astype(np.uint8))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_model_bundle(tmp_path_factory.mktemp("saved") / "bundle", context=CONTEXT)


@pytest.fixture
def session(bundle: Bundle) -> Iterator[Session]:
    with edge.load(bundle.path, engine="null") as opened:
        yield opened


def decoder(session: Session) -> Decoder:
    """With what it remembers, which the session's own property would let go."""
    return session._open()._decoder


def talked(session: Session) -> Chat:
    chat = session.chat([photo(1), photo(2)], system="Short.")
    chat.ask("What?", max_tokens=5)
    chat.ask("And then?", max_tokens=7)
    return chat


@pytest.fixture(scope="module")
def content(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("content") / "talk"
    with edge.load(bundle.path, engine="null") as opened:
        chat = opened.chat(photo(1))
        chat.ask("What?", max_tokens=2)
        chat.save(path)
    return path.read_bytes()


def test_a_conversation_is_what_it_was(session: Session, bundle: Bundle, tmp_path: Path) -> None:
    chat, path = talked(session), tmp_path / "talk"
    chat.save(path)
    expected = chat.ask("Why?", max_tokens=9)
    with edge.load(bundle.path, engine="null") as other:
        resumed = other.resume(path)
        assert [turn.answer for turn in resumed.turns] == [turn.answer for turn in chat.turns[:2]]
        assert [turn.answer_ids for turn in resumed.turns] == [turn.answer_ids for turn in chat.turns[:2]]
        assert resumed.system == "Short."
        first, second = (item for item in resumed.turns[0].content if isinstance(item, Embeddings))
        np.testing.assert_array_equal(first.rows, session.encode_image(photo(1)).rows)
        assert second.key == session.encode_image(photo(2)).key
        assert resumed.ask("Why?", max_tokens=9) == expected
        assert other.last.cached_tokens == session.last.cached_tokens > 0
        assert other.last.token_ids == session.last.token_ids


def test_only_the_owner_may_read_it_and_nothing_is_left_beside(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    path.write_text("something else, which is replaced")
    os.chmod(path, 0o666)
    talked(session).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 or os.name == "nt"
    assert [entry.name for entry in tmp_path.iterdir()] == ["talk"]


def test_a_chat_that_has_said_nothing_keeps_its_images(session: Session, bundle: Bundle, tmp_path: Path) -> None:
    chat = session.chat(photo(1))
    chat.save(tmp_path / "talk")
    expected = chat.ask("What?", max_tokens=6)
    with edge.load(bundle.path, engine="null") as other:
        assert other.resume(tmp_path / "talk").ask("What?", max_tokens=6) == expected


def test_a_later_question_may_show_another_image(session: Session, bundle: Bundle, tmp_path: Path) -> None:
    talked(session).save(tmp_path / "talk")
    chat = session.resume(tmp_path / "talk", photo(3))
    chat.ask("And this?", max_tokens=4)
    assert session.last.image_tokens == 3 * 4
    chat.ask("Why?", max_tokens=4)
    assert [sum(isinstance(item, Embeddings) for item in turn.content) for turn in chat.turns] == [2, 0, 1, 0]
    chat.save(tmp_path / "talk")
    assert len(session.resume(tmp_path / "talk").turns) == 4


def test_nothing_of_another_conversation_is_saved(session: Session, bundle: Bundle, tmp_path: Path) -> None:
    chat, path = talked(session), tmp_path / "talk"
    session.ask(None, "A secret?", max_tokens=30)
    chat.save(path)
    found = saved.read(path, bundle)
    assert found.prefix is not None
    said = bytes(max(item - 3, 0) for item in found.prefix.held if isinstance(item, int))
    assert b"secret" not in said and b"A chat" not in said
    assert chat.ask("Why?", max_tokens=5) == session.resume(path).ask("Why?", max_tokens=5)


def test_saving_ends_an_answer_that_stood_on_what_is_forgotten(session: Session, tmp_path: Path) -> None:
    chat = talked(session)
    other = session.stream(None, "Something else?", max_tokens=9)
    next(other)
    chat.save(tmp_path / "talk")
    with pytest.raises(UsageError, match="another question was asked"):
        list(other)


def test_without_a_kv_cache_in_reach_the_turns_are_saved(
    session: Session, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = talked(session)
    monkeypatch.setattr(type(decoder(session)), "layout", None)
    chat.save(tmp_path / "talk")
    assert saved.read(tmp_path / "talk", bundle).prefix is None
    assert session.resume(tmp_path / "talk").ask("Why?", max_tokens=5) == chat.ask("Why?", max_tokens=5)


def test_another_layout_is_computed_anew(
    session: Session, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = talked(session)
    chat.save(tmp_path / "talk")
    expected = chat.ask("Why?", max_tokens=5)
    with edge.load(bundle.path, engine="null") as other:
        monkeypatch.setattr(type(decoder(other)), "layout", "other")
        resumed = other.resume(tmp_path / "talk")
        assert decoder(other).position == 0
        assert resumed.ask("Why?", max_tokens=5) == expected
        assert other.last.cached_tokens == 0


# what is refused


def test_another_bundles_conversation(session: Session, tmp_path: Path) -> None:
    talked(session).save(tmp_path / "talk")
    other = write_model_bundle(tmp_path / "other", context=CONTEXT + 1)
    opened = edge.load(other.path, engine="null")
    with pytest.raises(SessionError, match="with another bundle") as told:
        opened.resume(tmp_path / "talk")
    assert "--session" in str(told.value.hint)


def refused(bundle: Bundle, path: Path) -> str:
    with pytest.raises(SessionError) as told:
        saved.read(path, bundle)
    assert told.value.hint
    return told.value.message


def test_what_is_no_file(bundle: Bundle, tmp_path: Path) -> None:
    assert "cannot read" in refused(bundle, tmp_path / "none")
    assert "cannot read" in refused(bundle, Path("a\0b"))
    assert "is no file" in refused(bundle, tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "is no file" in refused(bundle, tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 32)
    assert "has 4294967296 bytes" in refused(bundle, tmp_path / "large")


def test_a_file_that_is_cut_anywhere(bundle: Bundle, content: bytes, tmp_path: Path) -> None:
    header = 8 + int.from_bytes(content[:8], "little")
    path = tmp_path / "talk"
    for length in {*range(0, header, 3), *range(header - 9, len(content), 211), len(content) - 1}:
        path.write_bytes(content[:length])
        refused(bundle, path)
    path.write_bytes(content + b"\0")
    refused(bundle, path)


def test_a_byte_that_is_another(bundle: Bundle, content: bytes, tmp_path: Path) -> None:
    """In the header and in the numbers."""
    header = 8 + int.from_bytes(content[:8], "little")
    path = tmp_path / "talk"
    for at in {*range(header), *range(header, len(content), 211)}:
        for bit in (1, 128):
            bent = bytearray(content)
            bent[at] ^= bit
            path.write_bytes(bent)
            refused(bundle, path)


def forge(content: bytes, path: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
    """Another file of the same kind, whose checksum is right."""
    path.write_bytes(content)
    arrays = safetensors.read(path)
    said = json.loads(arrays["conversation"].tobytes())
    del arrays["checksum"]
    change(said, arrays)
    arrays.setdefault("conversation", np.zeros(0, np.uint8))
    if arrays["conversation"].size:
        arrays["conversation"] = np.frombuffer(json.dumps(said).encode(), np.uint8)
    safetensors.write(path, {**arrays, "checksum": saved._checksum(arrays)})


FORGED: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "no text": lambda said, arrays: arrays.update(conversation=np.zeros(0, np.uint8)),
    "version": lambda said, arrays: said.update(version=2),
    "no turns": lambda said, arrays: said.pop("turns"),
    "turns of text": lambda said, arrays: said.update(turns="abc"),
    "a turn of numbers": lambda said, arrays: said.update(turns=[3]),
    "an image that is not there": lambda said, arrays: said["turns"][0].update(content=[1]),
    "a negative image": lambda said, arrays: said["turns"][0].update(content=[-1]),
    "an image of truth": lambda said, arrays: said["turns"][0].update(content=[True]),
    "no answer": lambda said, arrays: said["turns"][0].update(answer=None),
    "an id outside": lambda said, arrays: said["turns"][0].update(ids=[259]),
    "a fraction of an id": lambda said, arrays: said["turns"][0].update(ids=[1.5]),
    "a system of numbers": lambda said, arrays: said.update(system=3),
    "an image without rows": lambda said, arrays: arrays.pop("image.0"),
    "narrow rows": lambda said, arrays: arrays.update({"image.0": np.zeros((4, 31), np.float32)}),
    "no rows": lambda said, arrays: arrays.update({"image.0": np.zeros((0, 32), np.float32)}),
    "half rows": lambda said, arrays: arrays.update({"image.0": np.zeros((4, 32), np.float16)}),
    "a key of numbers": lambda said, arrays: said.update(images=[3]),
    "more images": lambda said, arrays: said.update(images=["a", "b"]),
    "a layout of numbers": lambda said, arrays: said.update(layout=3),
    "no table": lambda said, arrays: arrays.pop("held"),
    "a table that is too long": lambda said, arrays: arrays.update(held=np.full((CONTEXT + 1, 2), -1, np.int32)),
    "a flat table": lambda said, arrays: arrays.update(held=np.zeros(6, np.int32)),
    "a held id outside": lambda said, arrays: arrays["held"].__setitem__((0, 0), 10**6),
    "a held row outside": lambda said, arrays: arrays["held"].__setitem__((0, 1), 4),
    "a held row before": lambda said, arrays: arrays["held"].__setitem__((0, 1), -2),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forger_computes_the_checksum(bundle: Bundle, content: bytes, tmp_path: Path, name: str) -> None:
    path = tmp_path / "talk"
    forge(content, path, FORGED[name])
    assert "is no conversation that this edge-vlm wrote" in refused(bundle, path)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
@given(st.sampled_from(["version", "bundle", "system", "turns", "images", "next", "layout"]), ANYTHING)
def test_whatever_stands_there_is_taken_or_refused(
    bundle: Bundle, content: bytes, tmp_path: Path, key: str, value: Any
) -> None:
    path = tmp_path / "talk"
    forge(content, path, lambda said, arrays: said.update({key: value}))
    try:
        found = saved.read(path, bundle)
    except SessionError:
        return
    assert key in ("version", "system", "turns", "next", "layout")
    assert all(isinstance(turn.answer, str) for turn in found.turns)


def test_arrays_that_the_decoder_does_not_take_are_computed_anew(
    bundle: Bundle, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "talk"
    forge(content, path, lambda said, arrays: [arrays.pop(name) for name in [*arrays] if name.startswith("kv.")])
    with edge.load(bundle.path, engine="null") as opened:
        chat = opened.resume(path)
        assert decoder(opened).position == 0
        assert chat.ask("Why?", max_tokens=3)


def test_where_it_cannot_be_written(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = talked(session)
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "talk", tmp_path / "folder"):
        with pytest.raises(SessionError, match="cannot write"):
            chat.save(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    chat.save(tmp_path / "talk")
    before = (tmp_path / "talk").read_bytes()
    monkeypatch.setattr(whole_files, "to_disk", full)
    with pytest.raises(SessionError, match="No space left"):
        chat.save(tmp_path / "talk")
    assert (tmp_path / "talk").read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "talk"]


def test_an_engine_that_fails_is_no_layout(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = talked(session)
    chat.save(tmp_path / "talk")

    def fails(*_: object) -> None:
        raise EngineError("no memory")

    monkeypatch.setattr(type(decoder(session)), "restore", fails)
    assert session.resume(tmp_path / "talk").turns[0].answer == chat.turns[0].answer
