"""`edge bench --on ssh://…` through OpenSSH's own client, to a server on loopback.

The server is asyncssh's, which pip installs; with `make test-remote` it is OpenSSH's sshd as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import MAIN, Said, call
from conftest import REPOSITORY, write_bundle
from exported import Exports
from remotes import RESULT, Machine
from ssh_servers import SSHD, AsyncServer, Keys, OpenSshServer, Wire, ssh_client

from edge.bundle.manifest import MANIFEST, Bundle, describe

LARGE = 12_000_000  # bytes that do not compress
OVERHEAD = 200_000  # bytes of several connections' beginnings, and of a larger transfer's frames
WINDOW = 2_200_000  # bytes that a server takes before it gives them on: lost with the connection


@dataclass
class Board:
    """A machine behind a server behind a wire."""

    machine: Machine
    keys: Keys
    wire: Wire
    server: AsyncServer | OpenSshServer
    config: Path

    @property
    def on(self) -> str:
        return f"ssh://127.0.0.1:{self.wire.port}"

    def bench(self, bundle: Path, *options: object) -> Said:
        return call("bench", bundle, "--on", self.on, *options, "-o", "json")


@pytest.fixture(scope="module", params=["asyncssh", pytest.param("sshd", marks=pytest.mark.sshd)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def board(kind: str, tmp_path: Path) -> Iterator[Board]:
    machine = Machine(tmp_path / "machine")
    machine.edge()
    keys = Keys(tmp_path)
    if kind == "sshd":
        assert SSHD, "OpenSSH's sshd is not on this machine; hint: install openssh-server"
    server = (OpenSshServer if kind == "sshd" else AsyncServer)(keys, machine.environment)
    wire = Wire(server.port)
    with ssh_client(tmp_path, keys, wire.port) as config:
        yield Board(machine, keys, wire, server, config)
    wire.close()
    server.close()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of invented bytes, with a large file and names that want quoting."""
    path = tmp_path / 'it\'s a "large" bundle $(touch pwned)'
    write_bundle(path)
    manifest = json.loads((path / MANIFEST).read_text())
    for name, content in (("large.bin", hashlib.shake_128(b"x").digest(LARGE)), ("a 'b' \"c\".txt", b"quoted")):
        (path / name).write_bytes(content)
        manifest.setdefault("companions", []).append(vars(describe(path, path / name)))
    (path / MANIFEST).write_text(json.dumps(manifest))
    return path


def test_the_real_benchmark_of_a_real_bundle(board: Board, exports: Exports) -> None:
    """Everything is real: export, copy, the package's own doctor and bench there."""
    board.machine.real_edge()
    bundle = exports.bundle(schemes=("fp32",))
    said = board.bench(bundle, "-p", 8, "-n", 3, "-r", 1, "-t", 1)
    assert said.code == 0, said.err
    found = said.json
    assert {"pp8", "tg3", "vision encode", "first token", "load", "peak memory"} <= {row["test"] for row in found}
    assert all(row["host"] == board.on and row["device"] and row["n_threads"] == 1 for row in found)
    assert all(row["avg_ns"] > 0 for row in found if row["test"] != "peak memory")
    (there,) = board.machine.bundles()
    Bundle.open(there).check()


def test_a_second_run_copies_nothing_and_a_changed_file_alone(board: Board, bundle: Path) -> None:
    said = board.bench(bundle)
    assert said.code == 0, said.err
    assert said.json == [{**RESULT, "host": board.on, "device": "A Board"}]
    assert LARGE < board.wire.sent < LARGE + OVERHEAD
    (there,) = board.machine.bundles()
    assert there.name == bundle.name
    Bundle.open(there).check()
    assert board.machine.called() == ["bench", str(there), "--output=json"]

    board.wire.sent = 0
    assert board.bench(bundle).code == 0
    assert board.wire.sent < OVERHEAD

    manifest = json.loads((bundle / MANIFEST).read_text())
    changed = hashlib.shake_128(b"y").digest(1_000_000)
    (bundle / "vision.onnx").write_bytes(changed)
    manifest["parts"][0]["files"] = [vars(describe(bundle, bundle / "vision.onnx"))]
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    board.wire.sent = 0
    assert board.bench(bundle).code == 0
    assert len(changed) < board.wire.sent < len(changed) + OVERHEAD
    Bundle.open(board.machine.called()[1]).check()


def test_a_cut_connection_goes_on_by_itself(board: Board, bundle: Path) -> None:
    """Cut twice in the middle of a file: what had arrived is not sent again."""
    board.wire.cuts = [6_000_000, 9_000_000]
    said = board.bench(bundle)
    assert said.code == 0, said.err
    assert board.wire.cuts == []
    assert LARGE < board.wire.sent < LARGE + OVERHEAD + 2 * WINDOW  # from the start each time: 21 MB
    Bundle.open(board.machine.called()[1]).check()


def test_a_server_that_dies_in_the_middle_and_comes_back(board: Board, bundle: Path) -> None:
    board.wire.cuts = [6_000_000]
    target, board.wire.after_cut = board.server.port, 1  # nobody listens there
    said = board.bench(bundle)
    assert (said.code, said.out) == (1, "")
    assert f"error: {board.on}: the connection was lost\nhint: " in said.err
    (partial,) = [content for name, content in board.machine.stored().items() if name.endswith(".partial")]
    assert 6_000_000 - WINDOW - OVERHEAD < len(partial) < LARGE
    assert (bundle / "large.bin").read_bytes().startswith(partial)

    board.wire.target, board.wire.sent = target, 0
    said = board.bench(bundle)
    assert said.code == 0, said.err
    missing = LARGE - len(partial)
    assert missing < board.wire.sent < missing + OVERHEAD
    Bundle.open(board.machine.called()[1]).check()
    assert not [name for name in board.machine.stored() if name.endswith(".partial")]


def test_a_users_configuration_holds(board: Board, bundle: Path) -> None:
    """The host's name, port and key come from there."""
    said = call("bench", bundle, "--on", "ssh://board", "-o", "json")
    assert said.code == 0, said.err
    assert said.json[0]["host"] == "ssh://board"


def test_two_machines_give_one_table(board: Board, bundle: Path) -> None:
    said = call("bench", bundle, "--on", "ssh://board", "--on", board.on)
    assert said.code == 0, said.err
    lines = [[cell.strip() for cell in line.split("|")] for line in said.out.splitlines()]
    assert [line[1] for line in lines[2:] if "12.50" in line] == ["ssh://board", board.on]


def test_its_error_is_ours(board: Board, bundle: Path) -> None:
    board.machine.edge("printf 'loading\\nerror: too little memory\\nhint: buy some\\n' >&2; exit 1")
    said = board.bench(bundle)
    assert (said.code, said.out) == (1, "")
    assert f"{board.on}: loading" in said.err
    assert said.err.endswith(f"error: {board.on}: too little memory\nhint: buy some\n")


def test_no_package_there(board: Board, bundle: Path) -> None:
    (board.machine.bin / "edge").unlink()
    said = board.bench(bundle)
    venv = "~/.local/share/edge-vlm"
    command = f"python3 -m venv {venv} && {venv}/bin/pip install -U 'edge-vlm[onnxruntime]'"
    assert said.err.startswith(f"error: {board.on}: edge-vlm is not installed there\n")
    assert shlex.join(["ssh", "-p", str(board.wire.port), "127.0.0.1", command]) in said.err


# who is let in


def replaced(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def refused(board: Board, bundle: Path) -> str:
    said = board.bench(bundle)
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith(f"error: {board.on}: "), said.err
    assert not board.machine.cache.exists()
    return said.err.removeprefix(f"error: {board.on}: ")


def test_an_unknown_key_of_the_host(board: Board, bundle: Path) -> None:
    (board.config.parent / "known_hosts").write_text("")
    said = refused(board, bundle)
    assert said.startswith("its host key is not known\n") and f"ssh -p {board.wire.port} " in said


def test_another_key_of_the_host(board: Board, bundle: Path) -> None:
    known = board.config.parent / "known_hosts"
    stranger = (board.keys.folder / "stranger.pub").read_text()
    known.write_text(f"[127.0.0.1]:{board.wire.port} {stranger}")
    said = refused(board, bundle)
    assert said.startswith("its host key is not the one that is known")
    assert f"ssh-keygen -R '[127.0.0.1]:{board.wire.port}'" in said


def test_a_user_who_is_not_let_in(board: Board, bundle: Path) -> None:
    replaced(
        board.config, f"IdentityFile {board.keys.folder / 'user'}", f"IdentityFile {board.keys.folder / 'stranger'}"
    )
    said = refused(board, bundle)
    assert said.startswith("it lets nobody in with the keys at hand (")
    assert f"ssh-copy-id -p {board.wire.port} 127.0.0.1" in said


def test_nobody_listens(board: Board, bundle: Path) -> None:
    board.wire.close()
    assert refused(board, bundle).startswith("it refuses the connection\nhint: ")


def test_no_such_name(board: Board, bundle: Path) -> None:
    said = call("bench", bundle, "--on", "ssh://no-such-host.invalid")
    assert "error: ssh://no-such-host.invalid: there is no such name\n" in said.err


# Ctrl-C, in a process of its own


def running(arguments: list[Any]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def until(what: str, condition: Any) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(what)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc/self").exists() else True


@pytest.fixture
def patient(board: Board) -> Path:
    """A benchmark there that waits, and on Ctrl-C tells what it has; the file that holds its process's number."""
    pid = board.machine.root / "pid"
    code = (
        "import json, os, sys, time\n"
        f"open({str(pid)!r}, 'w').write(str(os.getpid()))\n"
        "try: time.sleep(60)\n"
        f"except KeyboardInterrupt: print({json.dumps(RESULT)!r}); sys.exit(130)"
    )
    board.machine.edge(f"exec {sys.executable} -c {shlex.quote(code)}")
    return pid


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_a_kill_end_it_there_and_keep_what_it_had(
    board: Board, bundle: Path, patient: Path, how: signal.Signals, code: int
) -> None:
    process = running(["bench", bundle, "--on", board.on, "-o", "json"])
    until("it measures", lambda: patient.exists() and patient.read_text())
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert [row["avg_ts"] for row in json.loads(out)] == [RESULT["avg_ts"]]
    until("it ends there", lambda: not alive(int(patient.read_text())))


def test_a_kill_that_is_not_heard_here_ends_it_there(board: Board, bundle: Path, patient: Path) -> None:
    process = running(["bench", bundle, "--on", board.on, "-o", "json"])
    until("it measures", lambda: patient.exists() and patient.read_text())
    process.kill()
    process.communicate(timeout=60)
    until("it ends there", lambda: not alive(int(patient.read_text())))


def test_a_connection_that_is_lost_while_it_measures(board: Board, bundle: Path, patient: Path) -> None:
    process = running(["bench", bundle, "--on", board.on, "-o", "json"])
    until("it measures", lambda: patient.exists() and patient.read_text())
    board.wire.cut()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert f"error: {board.on}: the connection was lost" in err
    until("it ends there", lambda: not alive(int(patient.read_text())))
