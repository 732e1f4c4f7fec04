"""A benchmark on a machine that a plain sh reaches: what is called there, what comes back, and what fails."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import call
from remotes import DOCTOR, RESULT, Folder, Machine

from edge.bundle.manifest import Bundle
from edge.errors import BundleError, EdgeError, RemoteError, UsageError
from edge.inputs.calibration import Record, read
from edge.remote import fleet, shell
from edge.remote.bench import Job, remote_command
from edge.remote.fleet import Outcome, bench_on

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path / "a machine's")
    machine.edge()
    return machine


@pytest.fixture
def bundle(make_bundle: MakeBundle) -> Bundle:
    return make_bundle("my 'bundle'")


def measured(bundle: Bundle, *machines: Machine, said: list[str] | None = None, **job: Any) -> Outcome:
    links = [Folder(f"board {number}", machine) for number, machine in enumerate(machines)]
    return bench_on(links, Job(bundle, **job), lambda stage, share: None, (said if said is not None else []).append)


def failure(bundle: Bundle, machine: Machine) -> EdgeError:
    done = measured(bundle, machine)
    assert done.results == ()
    (error,) = done.errors
    assert error.message.startswith("board 0: ")
    return error


def test_what_was_measured_comes_back_with_its_origin(bundle: Bundle, machine: Machine) -> None:
    done = measured(bundle, machine, options=("--repetitions=3", "--odd=a b'c$(id)"))
    assert done == Outcome(({**RESULT, "host": "board 0", "device": "A Board"},), ())
    (place,) = machine.bundles()
    assert machine.called() == [*remote_command(str(place), ["--repetitions=3", "--odd=a b'c$(id)"])]
    Bundle.open(place).check()


def test_a_list_comes_back_as_one(bundle: Bundle, machine: Machine) -> None:
    machine.edge("""echo '[{"n": 1}, {"n": 2, "device": "what it says", "host": "itself"}]'""")
    assert measured(bundle, machine).results == (
        {"n": 1, "host": "board 0", "device": "A Board"},
        {"n": 2, "host": "board 0", "device": "what it says"},
    )


def test_a_picture_goes_along(bundle: Bundle, machine: Machine, tmp_path: Path) -> None:
    picture = tmp_path / "a cat's.jpg"
    picture.write_bytes(b"a picture")
    measured(bundle, machine, picture=picture)
    assert machine.called()[-2] == "--image"
    assert Path(machine.called()[-1]).read_bytes() == b"a picture"


def test_questions_and_their_pictures_go_along(bundle: Bundle, machine: Machine, tmp_path: Path) -> None:
    """As a file of questions that can be read there."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text(name)
    asked = [("a.png", "Qu'est-ce?", "Un chat."), ("b.png", "What?", "A dog."), ("a.png", "And?", "")]
    records = tuple(Record(tmp_path / name, question, answer) for name, question, answer in asked)
    measured(bundle, machine, questions=records)
    assert machine.called()[-2] == "--questions"
    there = read(Path(machine.called()[-1]))
    assert [(r.picture.read_text(), r.question, r.answer) for r in there] == asked
    assert all(machine.root in r.picture.parents for r in there)


def test_progress_is_told_and_what_the_shell_says_of_itself_is_not(bundle: Bundle, machine: Machine) -> None:
    machine.edge("printf 'warming \\033[1mup\\rround 1\\n' >&2; echo '{}'")
    said: list[str] = []
    stages: list[tuple[str, float]] = []
    link = Folder("board", machine, before="echo 'Welcome {'; echo 'Last login' >&2")
    done = bench_on([link], Job(bundle), lambda *stage: stages.append(stage), said.append)
    assert done.results == ({"host": "board", "device": "A Board"},)
    assert said == ["board: Last login", "board: warming  [1mup", "board: round 1"]
    assert stages[-1] == ("board: copy", 1.0)


def test_several_machines_side_by_side(bundle: Bundle, tmp_path: Path) -> None:
    """Each waits for the other: one after the other they would never end."""
    machines = [Machine(tmp_path / name) for name in ("one", "two", "three")]
    for machine, other in zip(machines, [machines[1], machines[0], machines[0]], strict=True):
        machine.edge(
            f"touch '{machine.root}/here'; until [ -e '{other.root}/here' ]; do sleep 0.05; done; "
            f"echo '{json.dumps({'name': machine.root.name})}'"
        )
    machines[2].edge("echo 'error: no such engine' >&2; echo 'hint: install it' >&2; exit 1")
    done = measured(bundle, *machines)
    assert [row["name"] for row in done.results] == ["one", "two"]
    assert [(error.message, error.hint) for error in done.errors] == [("board 2: no such engine", "install it")]


# what fails


def test_its_message_and_hint_are_ours(bundle: Bundle, machine: Machine) -> None:
    machine.edge("printf 'working\\nerror: too little memory: 5 MB\\n  of 10 MB\\nhint: buy more\\n' >&2; exit 1")
    error = failure(bundle, machine)
    assert type(error) is RemoteError
    assert (error.message, error.hint) == ("board 0: too little memory: 5 MB\nof 10 MB", "buy more")


def test_a_call_that_is_off_there(bundle: Bundle, machine: Machine) -> None:
    machine.edge("printf 'error: no engine x\\nhint: one of: y\\n' >&2; exit 2")
    assert type(failure(bundle, machine)) is UsageError


def test_an_option_that_is_not_known_there(bundle: Bundle, machine: Machine) -> None:
    machine.edge("printf 'Usage: edge\\n╭─ Error ───╮\\n│ No such option: --odd │\\n╰───╯\\n' >&2; exit 2")
    error = failure(bundle, machine)
    assert "No such option: --odd" in error.message
    assert str(DOCTOR["version"]) in str(error.hint)


def test_a_benchmark_that_is_killed_there(bundle: Bundle, machine: Machine) -> None:
    machine.edge("kill -9 $$")
    assert "killed" in failure(bundle, machine).message or "lost" in failure(bundle, machine).message


@pytest.mark.parametrize("said", ["", "no JSON", "[1]", '"text"', "{} {}", "[" * 100_000])
def test_what_is_no_result(bundle: Bundle, machine: Machine, said: str) -> None:
    (machine.root / "said").write_text(said)
    machine.edge(f'cat "{machine.root}/said"')
    assert "gave no JSON" in failure(bundle, machine).message


def test_no_package_there(bundle: Bundle, machine: Machine) -> None:
    (machine.bin / "edge").unlink()
    error = failure(bundle, machine)
    assert error.message == "board 0: edge-vlm is not installed there"
    assert "edge-vlm[onnxruntime]" in str(error.hint)
    assert machine.stored() == {}


def test_a_package_beside_the_path_is_found(bundle: Bundle, machine: Machine) -> None:
    place = machine.home / ".local" / "bin"
    place.mkdir(parents=True)
    (machine.bin / "edge").rename(place / "edge")
    assert len(measured(bundle, machine).results) == 1


@pytest.mark.parametrize("version", ["0.0.9", "0.0"])
def test_an_older_package_there(bundle: Bundle, machine: Machine, version: str) -> None:
    machine.edge(doctor={**DOCTOR, "version": version})
    error = failure(bundle, machine)
    assert f"edge-vlm {version} there is older than {DOCTOR['version']} here" in error.message
    assert machine.stored() == {}


@pytest.mark.parametrize("version", ["0.2.7", "0.3.0", "1.0", "10.0.dev1"])
def test_a_newer_package_there(bundle: Bundle, machine: Machine, version: str) -> None:
    machine.edge(doctor={**DOCTOR, "version": version})
    assert len(measured(bundle, machine).results) == 1


def test_no_engine_there(bundle: Bundle, machine: Machine) -> None:
    machine.edge(doctor={**DOCTOR, "engines": DOCTOR["engines"][1:]})  # type: ignore[index]
    error = failure(bundle, machine)
    assert "no engine is installed there for onnx" in error.message
    pip = f"'{machine.bin}/pip'".replace("a machine's", "a machine'\"'\"'s")
    assert f"{pip} install 'edge-vlm[onnxruntime]'" in str(error.hint)
    assert machine.stored() == {}


@pytest.mark.parametrize("doctor", ["[]", "{}", '{"version": "new"}', "Microsoft Edge", '{"version": 7}'])
def test_another_edge_there(bundle: Bundle, machine: Machine, doctor: str) -> None:
    machine.script("edge", f"echo '{doctor}'")
    assert "is not edge-vlm's" in failure(bundle, machine).message


def test_a_doctor_that_fails_there(bundle: Bundle, machine: Machine) -> None:
    machine.script("edge", "echo 'ModuleNotFoundError: numpy' >&2; exit 1")
    assert "`edge doctor` fails there: ModuleNotFoundError: numpy" in failure(bundle, machine).message


def test_no_folder_there(bundle: Bundle, machine: Machine) -> None:
    (machine.home / ".cache").write_text("a file")
    assert "no folder for the bundle" in failure(bundle, machine).message


def test_room_is_counted(bundle: Bundle, machine: Machine) -> None:
    machine.script(
        "df", "printf 'Filesystem 1024-blocks Used Available Capacity Mounted on\\n/dev/a b 9 8 1 99%% /\\n'"
    )
    assert "are to be copied, 1.0 kB are free" in failure(bundle, machine).message


def test_a_connection_that_fails(bundle: Bundle, machine: Machine) -> None:
    done = bench_on([Folder("board", machine, before="exit 255")], Job(bundle), lambda *a: None, print)
    assert [error.message for error in done.errors] == ["board: lost with 255: "]


def test_a_connection_that_hangs(bundle: Bundle, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.remote.host._SLOW", 0.3)
    machine.script("edge", "exec sleep 60")
    assert "nothing moved for 0 s" in failure(bundle, machine).message


def test_a_client_that_is_missing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    for on, program in (("ssh://board", "ssh"), ("adb:0A", "adb")):
        said = call("bench", bundle.path, "--on", on)
        assert said.code == 1
        assert said.err.startswith(f"error: {on}: {program} is not installed\n")


def test_a_bundle_that_is_damaged_here(bundle: Bundle, machine: Machine) -> None:
    (bundle.path / "vision.onnx").write_bytes(b"vision graPh")
    with pytest.raises(BundleError, match=r"vision\.onnx is not the file"):
        measured(bundle, machine)
    assert not machine.cache.exists()


# Ctrl-C

PATIENT = """echo $$ >"{root}/pid"
trap 'echo "{{\\"partial\\": true}}"; exit 130' INT
echo started >&2
n=0; while [ $n -lt 300 ]; do sleep 0.1; n=$((n+1)); done; touch "{root}/done" """


def gone(machine: Machine) -> bool:
    pid = int((machine.root / "pid").read_text())
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def interrupt_main(line: str) -> None:
    if line.endswith("started"):
        threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()


def test_an_interrupt_ends_it_there_and_keeps_what_it_had(bundle: Bundle, machine: Machine, tmp_path: Path) -> None:
    quick, told = Machine(tmp_path / "quick"), tmp_path / "told"
    quick.edge(f"echo '{{\"partial\": false}}'; touch {told}")
    machine.edge(f"while [ ! -e {told} ]; do sleep 0.05; done\n" + PATIENT.format(root=machine.root))
    links = [Folder("slow", machine), Folder("quick", quick)]
    done = bench_on(links, Job(bundle), lambda *a: None, interrupt_main)
    assert isinstance(done.interrupted, KeyboardInterrupt)
    assert [(row["host"], row["partial"]) for row in done.results] == [("slow", True), ("quick", False)]
    assert gone(machine)


def test_an_interrupt_while_something_else_runs(bundle: Bundle, machine: Machine) -> None:
    machine.script("edge", f'echo $$ >"{machine.root}/pid"; exec sleep 60')
    threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
    done = measured(bundle, machine)
    assert (done.results, done.errors, type(done.interrupted)) == ((), (), KeyboardInterrupt)


def test_a_benchmark_that_heeds_nothing_is_left_after_a_while(
    bundle: Bundle, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "GRACE", 0.3)
    machine.edge("trap '' INT; echo started >&2; sleep 2; sleep 2; exit 1")
    start = time.monotonic()
    done = bench_on([Folder("deaf", machine)], Job(bundle), lambda *a: None, interrupt_main)
    assert (done.results, done.errors, type(done.interrupted)) == ((), (), KeyboardInterrupt)
    assert time.monotonic() - start < 30


def test_a_connection_that_is_lost_ends_it_there(bundle: Bundle, machine: Machine) -> None:
    machine.edge(PATIENT.format(root=machine.root))
    running = shell.Shell(Folder("board", machine))
    from edge.remote.bench import measure

    errors: list[BaseException] = []

    def run() -> None:
        try:
            measure(running, Job(bundle), lambda *a: None, lambda line: None)
        except EdgeError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(200):
        if (machine.root / "pid").exists():
            break
        time.sleep(0.05)
    (process,) = running._running
    assert process.stdin is not None
    os.kill(process.pid, 0)
    process.stdin.close()  # what the other side sees of a cut
    thread.join(20)
    assert gone(machine)
    assert len(errors) == 1


# the command line


@pytest.fixture
def boards(monkeypatch: pytest.MonkeyPatch, machine: Machine, tmp_path: Path) -> dict[str, Machine]:
    """`--on ssh://one` and `ssh://two` are folders."""
    second = Machine(tmp_path / "two")
    second.edge()
    machines = {"ssh://one": machine, "ssh://two": second}
    monkeypatch.setattr("edge.remote.target.parse", lambda on: Folder(on, machines[on]))
    return machines


def test_one_machine_on_the_command_line(bundle: Bundle, boards: dict[str, Machine], tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    options = ["-n", "9", "-r", "3", "-t", "2", "--cache", "f16", "--image", tmp_path / "cat.jpg", "--debug"]
    said = call("bench", bundle.path, "--on", "ssh://one", *options, "-o", "json")
    assert said.code == 0, said.err
    assert said.json == [{**RESULT, "host": "ssh://one", "device": "A Board"}]
    words = boards["ssh://one"].called()
    assert words[3:-2] == ["--n-gen=9", "--repetitions=3", "--threads=2", "--cache=f16", "--debug"]
    assert "ssh://one: copy" in said.err


def test_two_machines_on_the_command_line(bundle: Bundle, boards: dict[str, Machine]) -> None:
    boards["ssh://two"].edge(f"echo '{json.dumps(RESULT).replace('12.5', '99.25')}'", {**DOCTOR, "processor": "Phone"})
    arguments = ("bench", bundle.path, "--on", "ssh://one", "--on", "ssh://two")
    assert [row["avg_ts"] for row in call(*arguments, "-o", "json").json] == [12.5, 99.25]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in call(*arguments).out.splitlines()]
    assert lines[0][:2] == ["host", "model"]
    columns = [lines[0].index(name) for name in ("host", "test", "t/s")]
    assert [[line[n] for n in columns] for line in lines[2:]] == [
        ["ssh://one", "tg64", "12.50"],
        ["ssh://two", "tg64", "99.25"],
    ]


def test_one_of_two_fails(bundle: Bundle, boards: dict[str, Machine]) -> None:
    boards["ssh://one"].edge("printf 'error: it broke\\nhint: mend it\\n' >&2; exit 1")
    said = call("bench", bundle.path, "--on", "ssh://one", "--on", "ssh://two", "-o", "json")
    assert said.code == 1
    assert [row["host"] for row in said.json] == ["ssh://two"]
    assert "error: ssh://one: it broke\nhint: mend it\n" in said.err
    boards["ssh://two"].edge("printf 'error: it broke too\\n' >&2; exit 1")
    said = call("bench", bundle.path, "--on", "ssh://one", "--on", "ssh://two")
    assert (said.code, said.out) == (1, "")
    assert "ssh://one: it broke\n" in said.err and "ssh://two: it broke too\n" in said.err


def test_no_such_picture(bundle: Bundle, boards: dict[str, Machine]) -> None:
    said = call("bench", bundle.path, "--on", "ssh://one", "--image", "missing.jpg")
    assert said.code == 1 and "no such picture: 'missing.jpg'" in said.err


def test_no_such_bundle(boards: dict[str, Machine]) -> None:
    assert "no bundle at 'missing'" in call("bench", "missing", "--on", "ssh://one").err
