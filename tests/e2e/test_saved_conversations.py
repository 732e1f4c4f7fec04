"""Conversations that are saved and gone on with: the same tokens as if nothing had come between, on every engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import call
from conftest import REPOSITORY
from exported import Exports

import edge

DEMO = REPOSITORY / "exporters" / "demo"
STAR, SIGN = DEMO / "pictures" / "shapes.png", DEMO / "pictures" / "sign.png"


@pytest.mark.parametrize("format", ["onnx", "gguf", "tflite", "executorch"])
def test_a_resumed_conversation_says_the_same(exports: Exports, format: str, tmp_path: Path) -> None:
    bundle, path = exports.bundle(format=format), tmp_path / "talk"
    expected = []
    with edge.load(bundle, threads=1) as session:
        chat = session.chat([STAR, SIGN])
        for question in ("What is it?", "Which one?"):
            chat.ask(question, max_tokens=8)
        chat.save(path)
        for question in ("Where is it?", "Why?"):
            chat.ask(question, max_tokens=12)
            expected.append((session.last.token_ids, session.last.cached_tokens))
    with edge.load(bundle, threads=1) as session:
        resumed = session.resume(path)
        for question, (ids, cached) in zip(("Where is it?", "Why?"), expected, strict=True):
            resumed.ask(question, max_tokens=12)
            assert session.last.token_ids == ids
            assert session.last.cached_tokens == cached


def test_another_kind_of_kv_cache_is_computed_anew(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # without the prefixes of others
    bundle, path = exports.bundle(checkpoint=DEMO / "checkpoint", format="gguf"), tmp_path / "talk"
    with edge.load(bundle, threads=1) as session:
        chat = session.chat(STAR)
        chat.ask("What is it?", max_tokens=6)
        chat.save(path)
    with edge.load(bundle, threads=1, cache="q8_0") as session:
        resumed = session.resume(path)
        assert resumed.ask("Why?", max_tokens=6)
        assert session.last.cached_tokens == 0
        assert len(resumed.turns) == 2


def test_commands_go_on_with_a_file(exports: Exports, tmp_path: Path) -> None:
    demo = exports.bundle(checkpoint=DEMO / "checkpoint", calib=REPOSITORY / "calib_data")
    path = tmp_path / "talk"
    with edge.load(demo) as session:
        chat = session.chat(STAR)
        expected = [chat.ask(question) for question in ("What colour is the star?", "Is there a star?", "Why?")]
    said = call("run", demo, STAR, "What colour is the star?", "--session", path)
    assert (said.code, said.out) == (0, expected[0] + "\n"), said.err
    assert call("run", demo, "Is there a star?", "--session", path, "--json").json["text"] == expected[1]
    assert call("run", demo, "--session", path, typed="Why?\n").out == expected[2] + "\n"
    shown = call("run", demo, SIGN, "What does the sign say?", "--session", path, "--json").json
    assert shown["image_tokens"] == 2 * 144
    with edge.load(demo) as session:
        assert [turn.answer for turn in session.resume(path).turns] == [*expected, shown["text"]]
    said = call("run", demo, "Why?", "--session", path, "--system", "Be brief.")
    assert (said.code, said.out) == (2, "")
    path.write_bytes(path.read_bytes()[:-1])
    said = call("run", demo, "Why?", "--session", path)
    assert (said.code, said.out) == (1, "")
    assert "torn" in said.err and "hint:" in said.err
    assert call("run", demo, "Why?", "--session", tmp_path / "none" / "talk").code == 1
