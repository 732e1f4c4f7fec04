"""Files that are written whole go nowhere else, whatever lies beside them."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.bench import results
from edge.devices import whole_files
from edge.evaluation import answers_file


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "a"
    with whole_files.aside(final) as beside:
        beside.write_text("one")
        assert not final.exists()
    with contextlib.suppress(KeyboardInterrupt), whole_files.aside(final) as beside:
        beside.write_text("tw")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert final.read_text() == "one"


def test_what_lies_where_it_is_written_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / ".a.00.part").symlink_to(tmp_path / "thesis")
    monkeypatch.setattr(secrets, "token_hex", lambda count: "00")
    with pytest.raises(FileExistsError), whole_files.aside(tmp_path / "a"):
        pytest.fail("the block must not run")
    assert (tmp_path / "thesis").read_text() == "years of work"


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = whole_files.to_disk, Path.replace
    monkeypatch.setattr(whole_files, "to_disk", lambda path: done.append(path.name[:3]) or sync(path))
    monkeypatch.setattr(Path, "replace", lambda path, to: done.append("->") or replace(path, to))
    with whole_files.aside(tmp_path / "a"):
        pass
    assert done == [".a.", "->", tmp_path.name[:3]]


WRITERS: dict[str, Callable[[Path], object]] = {
    "results of edge bench": lambda path: results.write(path, []),
    "answers of edge eval": lambda path: answers_file._replace(path, b"{}"),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("suffix", [".part", ".{pid}", ".tmp"])
def test_a_link_beside_it_is_not_written_through(
    tmp_path: Path, writer: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getpid", lambda: 77)
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / f"out{suffix.format(pid=77)}").symlink_to(tmp_path / "thesis")
    WRITERS[writer](tmp_path / "out")
    assert (tmp_path / "thesis").read_text() == "years of work"
    assert (tmp_path / "out").is_file()


KILLED = """
import os, signal, sys
from pathlib import Path
from edge.devices import whole_files
with whole_files.aside(Path(sys.argv[1])) as beside:
    beside.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="a file system without locks")
def test_what_a_killed_process_left_goes_with_the_next_one(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a")], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / ".a.mine.part").write_text("not ours")
    with whole_files.aside(tmp_path / "a") as one:
        one.write_text("one")
        with whole_files.aside(tmp_path / "a") as other:  # what is written to now stays
            other.write_text("other")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.mine.part", "a"]
    assert (tmp_path / "a").read_text() == "one"
