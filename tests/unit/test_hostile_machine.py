"""A machine of `--on` whose owner is hostile: what it says is bounded, and is words."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import call
from remotes import DOCTOR, RESULT, Folder, Machine

from edge.bundle.manifest import Bundle
from edge.errors import EdgeError, RemoteError
from edge.remote import said, shell
from edge.remote.bench import Job
from edge.remote.fleet import bench_on
from edge.remote.shell import Shell


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path / "machine")
    machine.edge()
    return machine


def failure(bundle: Bundle, machine: Machine) -> EdgeError:
    (error,) = bench_on([Folder("there", machine)], Job(bundle), lambda *a: None, lambda line: None).errors
    return error


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(said, "MOST", 4 << 20)


ENDLESS = {
    "a line without an end on stderr": "tr '\\0' x </dev/zero >&2",
    "lines without an end on stderr": f"yes {'said ' * 40} >&2",
    "a line without an end": "tr '\\0' x </dev/zero",
}


@pytest.mark.parametrize("endless", ENDLESS)
@pytest.mark.parametrize("how", ["run", "stream"])
def test_what_has_no_end_is_ended(machine: Machine, small: None, endless: str, how: str) -> None:
    link = Shell(Folder("there", machine))
    tracemalloc.start()
    try:
        with pytest.raises(RemoteError, match="it says more than 4 MiB"):
            link.run(ENDLESS[endless]) if how == "run" else link.stream(ENDLESS[endless], lambda line: None)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_of_much_that_is_said_the_end_is_kept(machine: Machine) -> None:
    heard: list[str] = []
    done = Shell(Folder("there", machine)).stream(
        "i=0; while [ $i -lt 3000 ]; do echo $i......................................... >&2; i=$((i + 1)); done; "
        "printf '%09000d' 7 >&2",
        heard.append,
    )
    assert len(heard) == 3001
    assert len(done.err) <= said.MOST_SAID + 3000
    assert done.err.endswith("2999.........................................\n" + "0" * said.LONGEST)


def test_of_the_errors_of_a_command_the_last_are_kept(machine: Machine) -> None:
    done = Shell(Folder("there", machine)).run("yes | head -c 200000 >&2; echo no room >&2")
    assert done.err.endswith("no room\n")
    assert len(done.err) == said.MOST_SAID


def test_no_more_is_shown_than_can_be_read(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(said, "MOST_HEARD", 100)
    heard: list[str] = []
    done = Shell(Folder("there", machine)).stream("for i in 1 2 3 4; do printf '%060d\\n' $i >&2; done", heard.append)
    assert len(heard) == 1
    assert len(done.err.splitlines()) == 4


@pytest.mark.parametrize("code", ["zero", "-1", "", "1 2", "9" * 5000, "\u00b2"])
def test_an_exit_code_that_is_none(machine: Machine, code: str) -> None:
    with pytest.raises(RemoteError, match="which is no exit code"):
        Shell(Folder("there", machine, before=f"echo {shell.BEGIN}; echo '{shell.END} {code}'; exit")).run("true")


@pytest.mark.parametrize("free", ["9" * 5000, "\u00b2", "-5"])
def test_room_that_is_no_number_stops_nobody(make_bundle: Callable[..., Bundle], machine: Machine, free: str) -> None:
    machine.script("df", f"echo '/dev/a 1 1 {free} 5% /'")
    assert len(bench_on([Folder("there", machine)], Job(make_bundle()), lambda *a: None, print).results) == 1


@pytest.mark.parametrize(
    "told",
    [
        {"version": "9" * 5000 + ".1"},
        {"version": "0." + "9" * 5000},
        {"engines": [{"version": "1", "formats": 5}]},
        {"engines": [{"version": "1", "formats": [["onnx"]]}]},
        {"engines": {"a": 1}},
    ],
)
def test_facts_that_are_none(make_bundle: Callable[..., Bundle], machine: Machine, told: dict[str, Any]) -> None:
    machine.edge(doctor={**DOCTOR, **told})
    error = failure(make_bundle(), machine)
    assert isinstance(error, RemoteError)
    assert "is not edge-vlm's" in error.message or "no engine is installed there" in error.message


def test_facts_without_a_bottom(make_bundle: Callable[..., Bundle], machine: Machine) -> None:
    (machine.root / "deep").write_text("[" * 100_000)
    machine.script("edge", f"cat '{machine.root}/deep'")
    assert "is not edge-vlm's" in failure(make_bundle(), machine).message


@pytest.mark.parametrize(
    "change",
    [{"model_type": None}, {"avg_ts": "fast"}, {"avg_ts": float("nan")}, {"warnings": 5}, {"schema": 99}, {"test": 1}],
)
def test_a_result_that_is_none_ends_no_other(
    make_bundle: Callable[..., Bundle],
    machine: Machine,
    change: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    honest = Machine(tmp_path / "honest")
    honest.edge()
    machine.edge(f"echo '{json.dumps({**RESULT, **change})}'")
    machines = {"ssh://evil": machine, "ssh://honest": honest}
    monkeypatch.setattr("edge.remote.target.parse", lambda on: Folder(on, machines[on]))
    found = call("bench", make_bundle().path, "--on", "ssh://evil", "--on", "ssh://honest", "-o", "json")
    assert [row["host"] for row in found.json] == ["ssh://honest"]
    assert "error: a result of ssh://evil" in found.err
    assert found.code == 1


def test_its_words_do_not_steer_the_terminal(
    make_bundle: Callable[..., Bundle], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "\x1b]0;owned\x07\x1b[31m"
    machine.edge(f"echo '{json.dumps({**RESULT, 'test': 'tg64' + evil, 'warnings': [evil]})}'")
    monkeypatch.setattr("edge.remote.target.parse", lambda on: Folder(on, machine))
    for output in ("md", "csv", "jsonl"):
        found = call("bench", make_bundle(f"b{output}").path, "--on", "ssh://evil", "-o", output)
        assert "tg64" in found.out
        assert not {"\x1b", "\x07"} & set(found.out + found.err)
