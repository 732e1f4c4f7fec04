"""`--on`, and the processes that it means."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from commands import call
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import RemoteError, UsageError
from edge.remote.adb import Adb
from edge.remote.shell import Dropped, clean, in_sh
from edge.remote.ssh import Ssh
from edge.remote.target import parse, parse_all


@pytest.mark.parametrize(
    ("on", "host", "user", "port"),
    [
        ("ssh://pi@raspberry.local:2222", "raspberry.local", "pi", 2222),
        ("ssh://board", "board", None, None),
        ("ssh://board/", "board", None, None),
        ("ssh://u0_a217@192.168.1.20:8022", "192.168.1.20", "u0_a217", 8022),
        ("ssh://me@[fe80::1%eth0]:22", "fe80::1%eth0", "me", 22),
        ("ssh://[::1]", "::1", None, None),
        ("ssh://name@domain@board", "board", "name@domain", None),
    ],
)
def test_ssh(on: str, host: str, user: str | None, port: int | None) -> None:
    assert parse(on) == Ssh(on, host, user, port)


@pytest.mark.parametrize("serial", ["emulator-5554", "192.168.1.5:5555", "adb-1A (2)._adb-tls-connect._tcp", "0A1B"])
def test_adb(serial: str) -> None:
    assert parse(f"adb:{serial}") == Adb(f"adb:{serial}", serial)


@pytest.mark.parametrize(
    "on",
    [
        "",
        "board",
        "pi@board",
        "http://board",
        "ssh://",
        "ssh://@board",
        "ssh://board:",
        "ssh://board:0",
        "ssh://board:65536",
        "ssh://board:http",
        "ssh://board/home",
        "ssh://pi:secret@board",
        "ssh://-oProxyCommand=id",
        "ssh://-oProxyCommand=id@board",
        "ssh://$(id)@board",
        "ssh://board;id",
        "ssh://board id",
        "ssh://board\n",
        "ssh://[::1",
        "adb:",
        "adb:-e",
        "adb:a\nb",
    ],
)
def test_what_is_no_machine(on: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(on)
    assert caught.value.hint


def test_a_machine_is_named_once() -> None:
    assert len(parse_all(["ssh://a", "ssh://b", "ssh://a:23", "adb:a"])) == 4
    with pytest.raises(UsageError, match="twice"):
        parse_all(["ssh://a", "ssh://b", "ssh://A/"])


def test_the_command_line_says_what_is_no_machine(tmp_path: object) -> None:
    said = call("bench", tmp_path, "--on", "board")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: --on 'board' is no machine\n")
    assert "--on ssh://user@host[:port]" in said.err and "--on adb:SERIAL" in said.err


def test_ssh_asks_nothing_and_takes_the_rest_from_the_users_configuration() -> None:
    argv = Ssh("ssh://board", "board").argv("true")
    assert argv[0] == "ssh" and argv[-3:] == ["--", "board", "true"]
    assert "-oBatchMode=yes" in argv and "-oClearAllForwardings=yes" in argv
    assert not {"-p", "-l", "-i", "-F"} & set(argv)
    argv = Ssh("…", "board", "pi", 2222).argv("true")
    assert argv[argv.index("-l") + 1] == "pi" and argv[argv.index("-p") + 1] == "2222"


def test_adb_gets_one_word() -> None:
    assert Adb("…", "0A 1B").argv("echo 'a b'") == ["adb", "-s", "0A 1B", "shell", "-T", "echo 'a b'"]


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",))))
def test_a_script_survives_the_login_shell(text: str) -> None:
    said = subprocess.run(["sh", "-c", in_sh(f"printf %s {shlex.quote(text)}")], capture_output=True, check=True)
    assert said.stdout == text.encode()


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        ("ssh: connect to host board port 22: Connection refused", "refuses the connection", "ssh -l pi board"),
        ("Host key verification failed.", "host key is not known", "ssh -l pi board"),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            "not the one",
            "-R board",
        ),
        ("pi@board: Permission denied (publickey,password).", "keys at hand (pi@board: Perm", "ssh-copy-id pi@board"),
        ("ssh: Could not resolve hostname board: Name or service not known", "no such name", "ssh/config"),
        ("ssh: connect to host board port 22: Connection timed out", "does not answer", "network"),
        ("ssh: connect to host board port 22: No route to host", "no way to it", "network"),
        ("something new", "something new (exit 255)", ""),
    ],
)
def test_what_ssh_says_in_our_words(said: str, message: str, hint: str) -> None:
    error = Ssh("ssh://pi@board", "board", "pi").explain(255, said)
    assert type(error) is RemoteError
    assert error.message.startswith("ssh://pi@board: ") and message in error.message
    assert hint in (error.hint or "")


@pytest.mark.parametrize(
    "said",
    [
        "",
        "Connection to board closed by remote host.",
        "client_loop: send disconnect: Broken pipe",
        "Timeout, server board not responding.",
        "Read from remote host board: Connection reset by peer",
    ],
)
def test_a_lost_connection_is_told_from_others(said: str) -> None:
    error = Ssh("ssh://board", "board").explain(255, said)
    assert isinstance(error, Dropped)
    assert "same command" in (error.hint or "")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("adb: device '0A' not found", "does not see it"),
        ("error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set", "does not trust"),
        ("adb: device offline", "offline"),
        ("error: target doesn't support PTY args -Tt", "too old"),
        ("error: closed", "lost"),
    ],
)
def test_what_adb_says_in_our_words(said: str, message: str) -> None:
    error = Adb("adb:0A", "0A").explain(1, said)
    assert error.message.startswith("adb:0A: ") and message in error.message
    assert error.hint


def test_anothers_words_do_not_steer_the_terminal() -> None:
    assert clean("\x1b[2Jred\x07 \x9b1mtext\n") == "[2Jred   1mtext"
