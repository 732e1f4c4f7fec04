"""The file of answers: whole lines, gone on with, and refused where it is another run's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from evaluation_files import RUN, write_answers
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import EdgeError, UsageError
from edge.evaluation import answers_file
from edge.evaluation.answers_file import Line, read, resume

LINE = Line("1", "cat.jpg", "", "Ja, “größer”\u2028", 0.3, "stop", 4, 0.5)


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.jsonl"
    file, known = resume(path, RUN)
    assert known == []
    file.append(LINE)
    file.append(replace(LINE, id="2", stop="too long"))
    assert read(path) == (RUN, [LINE, replace(LINE, id="2", stop="too long")])
    assert resume(path, RUN)[1] == read(path)[1]
    assert [json.loads(line) for line in path.read_bytes().split(b"\n") if line][1] == asdict(LINE)


def test_every_answer_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = resume(tmp_path / "a.jsonl", RUN)
    written: list[bytes] = []

    class Spy:
        def __enter__(self) -> Spy:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def write(self, content: bytes) -> int:
            written.append(content)
            return len(content) // 2  # the disk is full

    monkeypatch.setattr(Path, "open", lambda *given, **options: Spy())
    with pytest.raises(EdgeError, match="the disk is full"):
        file.append(LINE)
    assert len(written) == 1 and written[0].endswith(b"}\n")


@given(cut=st.integers(1, 2000))
@settings(max_examples=60, deadline=None)
def test_a_torn_file_keeps_its_whole_lines(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write_answers(tmp_path_factory.mktemp("torn") / "a.jsonl", 6)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    kept = max(0, whole[:cut].count(b"\n") - 1)
    file, known = resume(path, RUN)
    assert [line.id for line in known] == [f"q{n}" for n in range(kept)]
    file.append(LINE)
    assert [line.id for line in read(path)[1]] == [*(line.id for line in known), "1"]


def test_reading_to_compare_changes_nothing(tmp_path: Path) -> None:
    path = write_answers(tmp_path / "a.jsonl", 3)
    torn = path.read_bytes()[:-5]
    path.write_bytes(torn)
    assert len(read(path)[1]) == 2
    assert path.read_bytes() == torn


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": "gqa"}, "another run: task pope, and not gqa"),
        ({"bundle": "other w4"}, "another run: bundle demo w8a8"),
        ({"bundle_sha256": "c" * 64}, f"sha256 {'b' * 64}, and not demo w8a8\\+w4, sha256 {'c' * 64}"),
        ({"questions_sha256": "r" * 64}, "another run: questions sha256 q"),
        ({"engines": "llamacpp"}, "another run: engines onnxruntime, and not llamacpp"),
    ],
)
def test_another_runs_file_is_refused_by_name(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    path = write_answers(tmp_path / "a.jsonl", 2)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=said) as caught:
        resume(path, replace(RUN, **changes))  # type: ignore[arg-type]
    assert "another file with -o" in (caught.value.hint or "")
    assert path.read_bytes() == before


def test_another_version_may_go_on(tmp_path: Path) -> None:
    path = write_answers(tmp_path / "a.jsonl", 2)
    assert len(resume(path, replace(RUN, edge_vlm="0.3.0"))[1]) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"my thesis",
        b"my thesis\n",
        b"{}\n",
        b"[]\n",
        b'{"edge_eval": "1"}\n',
        b'{"edge_eval": true}\n',
        b"\xff\n",
        b"\n",
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        resume(path, RUN)
    with pytest.raises(UsageError):
        read(path)
    assert path.read_bytes() == content


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"edge_eval": 2}\n')
    with pytest.raises(UsageError, match="schema 2; this edge-vlm reads 1"):
        read(path)


DAMAGES: dict[str, Callable[[str], str]] = {
    "NaN": lambda text: text.replace('"score": 1.0', '"score": NaN', 1),
    "infinite": lambda text: text.replace('"seconds": 0.25', '"seconds": 1e999', 1),
    "too right": lambda text: text.replace('"score": 1.0', '"score": 1.5', 1),
    "a truth value": lambda text: text.replace('"tokens": 2', '"tokens": "2"', 1),
    "no text": lambda text: text.replace('"text": "yes"', '"text": null', 1),
    "lost field": lambda text: text.replace('"stop": "stop", ', "", 1),
    "torn inside": lambda text: text.replace('"stop": "stop", "tokens": 2', "", 1),
    "a list": lambda text: text.replace("\n{", "\n[]\n{", 1),
    "twice": lambda text: text.replace('"q1"', '"q0"', 1),
    "no engines": lambda text: text.replace('"onnxruntime"', "null", 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_never_cut_away(tmp_path: Path, damage: str) -> None:
    path = write_answers(tmp_path / "a.jsonl", 4)
    path.write_text(after := DAMAGES[damage](path.read_text(encoding="utf-8")), encoding="utf-8")
    for opened in (lambda: read(path), lambda: resume(path, RUN)):
        with pytest.raises(UsageError, match=r"a\.jsonl(, line \d| answers question q0 twice)"):
            opened()
    assert path.read_text(encoding="utf-8") == after


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EdgeError, match="cannot write"):
        resume(tmp_path / "file" / "a.jsonl", RUN)
    with pytest.raises(EdgeError, match="cannot write"):
        answers_file.write(tmp_path / "nowhere" / "a.jsonl", {})
    with pytest.raises(UsageError, match="cannot read"):
        resume(tmp_path, RUN)
    with pytest.raises(UsageError, match="no file"):
        read(tmp_path / "nowhere.jsonl")
