from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.errors import UsageError
from edge.inputs.calibration import Record, read
from edge.inputs.image import open_image

SHIPPED = REPOSITORY / "calib_data"


def written(folder: Path, *lines: Any) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "cat.jpg").touch()
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "prompts.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_records_in_the_order_of_the_lines(tmp_path: Path) -> None:
    cat = {"image": "images/cat.jpg", "question": "Qu'est-ce que c'est? 猫"}
    folder = written(tmp_path, {**cat, "answer": "A cat."}, "", "   ", cat, {**cat, "more": 1})
    picture = tmp_path / "images" / "cat.jpg"
    question = "Qu'est-ce que c'est? 猫"
    assert read(folder) == [Record(picture, question, "A cat."), *[Record(picture, question, "")] * 2]


def test_a_question_may_hold_any_character_that_is_no_newline(tmp_path: Path) -> None:
    question = "one\u2028two\x85three\x0bfour"
    assert read(written(tmp_path, {"image": "images/cat.jpg", "question": question}))[0].question == question


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "3",
        "null",
        '"cat"',
        '{"image": "images/cat.jpg"}',
        '{"question": "What?"}',
        '{"image": null, "question": "What?"}',
        '{"image": ["images/cat.jpg"], "question": "What?"}',
        "[" * 5000,
    ],
)
def test_the_line_that_is_off_is_named(line: str, tmp_path: Path) -> None:
    good = {"image": "images/cat.jpg", "question": "What?"}
    with pytest.raises(UsageError, match=r"prompts\.jsonl, line 3: ") as caught:
        read(written(tmp_path, good, "", line))
    assert '"image"' in (caught.value.hint or "")


@pytest.mark.parametrize("image", ["images/dog.jpg", "images", "", "images/cat.jpg\0", "x" * 5000])
def test_a_picture_that_is_not_there_is_named(image: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"prompts\.jsonl, line 1: no picture "):
        read(written(tmp_path, {"image": image, "question": "What?"}))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_bytes(b'{"image": "\xff"}\n')
    with pytest.raises(UsageError, match=r"prompts\.jsonl, line 1: UnicodeDecodeError"):
        read(tmp_path)


def test_a_byte_order_mark_and_carriage_returns(tmp_path: Path) -> None:
    folder = written(tmp_path, "")
    line = b'{"image": "images/cat.jpg", "question": "What?"}\r\n'
    (folder / "prompts.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line)
    assert [record.question for record in read(folder)] == ["What?", "What?"]


def test_prompts_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    folder = written(tmp_path, "{}")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UsageError, match=r"cannot read .*prompts\.jsonl.*Permission denied"):
        read(folder)


def test_a_folder_without_prompts(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match=r"no prompts\.jsonl in"):
            read(folder)


@pytest.mark.parametrize("text", ["", "\n", "  \n\n"])
def test_an_empty_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(text)
    with pytest.raises(UsageError, match="is empty"):
        read(tmp_path)


@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(max_examples=200, deadline=None)
def test_only_a_usage_error_escapes(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "wild"
    folder.mkdir(exist_ok=True)
    (folder / "prompts.jsonl").write_bytes(content)
    with pytest.raises(UsageError):
        read(folder)


# what is shipped


def test_the_shipped_data_can_be_read() -> None:
    records = read(SHIPPED)
    pictures = {record.picture for record in records}
    assert pictures == set((SHIPPED / "images").iterdir())
    assert all(record.question and record.answer for record in records)
    assert {open_image(picture).mode for picture in pictures} == {"RGB"}


def test_the_shipped_data_is_what_its_sums_say() -> None:
    lines = [line.split(maxsplit=1) for line in (SHIPPED / "SHA256SUMS").read_text().splitlines()]
    sums = {name.lstrip("*"): digest for digest, name in lines}
    found = [SHIPPED / "prompts.jsonl", *(SHIPPED / "images").iterdir()]
    assert sums == {
        path.relative_to(SHIPPED).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found
    }
