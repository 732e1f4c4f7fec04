"""A tokenizer.json that would take all memory, end the process, or fail as a bug does, is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from edge.errors import BundleError
from edge.inputs import tokenizer_checks
from edge.inputs.tokenizer import Tokenizer

SOUND = REPOSITORY / "tests" / "data" / "tokenizer.json"
Change = Callable[[dict[str, Any]], None]


def changed(folder: Path, change: Change) -> Path:
    told = json.loads(SOUND.read_bytes())
    change(told)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(told))
    return path


def normalizer(told: Any) -> Change:
    return lambda whole: whole.update(normalizer=told)


def sequence(steps: list[Any]) -> Any:
    return {"type": "Sequence", "normalizers": steps}


def replace(pattern: dict[str, str], content: str) -> Any:
    return {"type": "Replace", "pattern": pattern, "content": content}


def nested(depth: int) -> Any:
    return sequence([nested(depth - 1)]) if depth else {"type": "NFC"}


def characters(tree: list[int], texts: bytes) -> Any:
    content = (4 * len(tree)).to_bytes(4, "little") + b"".join(unit.to_bytes(4, "little") for unit in tree) + texts
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}


DOUBLED = replace({"String": "a"}, "aa")


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (sequence([DOUBLED] * 40), "up to 1.1e.12 times as long"),
        (sequence([sequence([DOUBLED] * 3)] * 2), "up to 64 times as long"),
        (replace({"String": "a"}, "b" * 17), "up to 17 times as long"),
        (sequence([replace({"Regex": ""}, "bb")] * 3), "up to 27 times as long"),
        (replace({"Regex": "a"}, "b" * 300), "300 letters for a pattern"),
        (sequence([{"type": "NFC"}] * 65), "in 65 steps"),
        (nested(12), "of no kind that is read"),
        ({"type": "Prepend", "prepend": "a" * 300}, "more than 256 letters before a text"),
        ({"type": "Mine"}, "of no kind that is read"),
        (["NFC"], "of no kind that is read"),
        ({"type": "Sequence", "normalizers": {}}, "no list"),
        ({"type": "Replace", "pattern": "a", "content": "b"}, "replaces what is no text"),
        ({"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}, "a tree of 4294967295 bytes"),
        ({"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}, "a branch that leaves it"),
        ({"type": "Precompiled", "precompiled_charsmap": "no base64"}, "no base64"),
        ({"type": "Precompiled", "precompiled_charsmap": 5}, "no base64"),
        ({"type": "Precompiled", "precompiled_charsmap": ""}, "a tree of 0 bytes, and 0 in all"),
        (characters([0] * 255, b""), "a branch that leaves it"),
        (characters([0] * 256, b"a" * 300), "puts 300 bytes for a letter"),
        (characters([0] * 256, b"\xff"), "texts that are none"),
        (characters([1 << 8 | 1 << 10, 1 << 31 | 5] + [0] * 254, b"ab\0"), "refers to byte 5 of 3"),
        (characters([1 << 8 | 1 << 10, 1 << 31 | 1] + [0] * 254, "é".encode()), "refers to byte 1 of 2"),
    ],
)
def test_what_the_library_would_not_survive_is_refused(tmp_path: Path, told: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        Tokenizer.open(changed(tmp_path, normalizer(told)))
    assert "tokenizer.json is not a tokenizer.json" in caught.value.message


@pytest.mark.parametrize(
    "told",
    [
        None,
        {"type": "NFKC"},
        sequence([replace({"Regex": r"\A +"}, ""), replace({"Regex": " {2,}"}, " "), replace({"String": " "}, "▁")]),
        sequence([replace({"Regex": r"\A(?!(?:x)\z)"}, "▁"), {"type": "Prepend", "prepend": "▁"}]),
        characters([0] * 256, b""),
        characters([1 << 8 | 1 << 10, 1 << 31 | 0] + [0] * 254, b"ab\0"),
    ],
)
def test_what_exports_write_is_read(tmp_path: Path, told: Any) -> None:
    Tokenizer.open(changed(tmp_path, normalizer(told))).encode("Hello")


def backtracks(whole: dict[str, Any]) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a|aa|a*)*b$"}, "behavior": "Isolated", "invert": False}
    whole["pre_tokenizer"] = split


def no_unknown(whole: dict[str, Any]) -> None:
    whole["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "nope"}


@pytest.mark.parametrize("change", [backtracks, no_unknown])
def test_a_text_that_cannot_be_cut_is_told(tmp_path: Path, change: Change, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer.open(changed(tmp_path, change))
    with pytest.raises(BundleError, match="the tokenizer cannot cut this text: ") as caught:
        tokenizer.encode("a" * 60 + "b c")
    assert "\n" not in caught.value.message


def test_a_file_that_is_too_large_or_too_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("[" * 100_000)
    with pytest.raises(BundleError, match="nested too deeply"):
        Tokenizer.open(path)
    monkeypatch.setattr(tokenizer_checks, "MOST_BYTES", 1000)
    with pytest.raises(BundleError, match="at most 1,000 are read"):
        Tokenizer.open(path)


def test_ctrl_c_while_a_text_is_cut_is_no_error_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.open(SOUND)

    class Interrupted:
        def encode(self, text: str, add_special_tokens: bool) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer, "_inner", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode("a")
