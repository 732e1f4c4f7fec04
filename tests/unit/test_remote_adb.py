"""`--on adb:SERIAL`, at the border of adb's command line: an `adb` on PATH that notes its call, and runs it here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call
from remotes import DOCTOR, RESULT, Machine

from edge.bundle.manifest import Bundle
from edge.remote.adb import TERMUX

# What the device would see of itself lies below ROOT: the places that adb's shell and Termux know are put there.
ADB = """
import json, os, re, subprocess, sys
ROOT, SERIAL, TROUBLE = {root!r}, {serial!r}, os.environ.get("FAKE_ADB_TROUBLE", "")
with open(ROOT + "/calls", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
option, serial, verb, raw, command = sys.argv[1:]
assert (option, verb, raw) == ("-s", "shell", "-T")
if TROUBLE:
    sys.exit(TROUBLE)
if serial != SERIAL:
    sys.exit(f"adb: device '{{serial}}' not found")
def here(text):
    text = text.replace(":/system/bin ", ":/usr/bin:/bin ")
    places = "/data/local/tmp|/sdcard/Android/data|{termux}"
    return re.sub(f"(?<!{{re.escape(ROOT)}})({{places}})", lambda found: ROOT + found[0], text)
environment = {{"PATH": ROOT + "/system/bin:/usr/bin:/bin", "HOME": "/", "FAKE_ROOT": ROOT}}
if command.endswith("exec sh -s") or "'exec sh -s'" in command:
    done = subprocess.run(["sh", "-c", here(command)], input=here(sys.stdin.read()), text=True, env=environment)
else:
    done = subprocess.run(["sh", "-c", here(command)], env=environment)
sys.exit(done.returncode)
"""

# Enters the app's sandbox: the rest of the words is the command.
RUN_AS = """if [ "$1" != com.termux ] || ! [ -d "$FAKE_ROOT{termux}/usr/bin" ]; then
  echo "run-as: unknown package: $1" >&2; exit 1
fi
shift; exec "$@" """

SERIAL = "adb-0A1B (2)"


class Phone(Machine):
    """Its shell's commands lie in `bin`, as /system/bin does."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        (root / "data/local/tmp").mkdir(parents=True)
        (root / "system").mkdir()
        (root / "system/bin").symlink_to(self.bin)
        self.script("run-as", RUN_AS.format(termux=TERMUX))

    @property
    def cache(self) -> Path:
        return self.root / "data/local/tmp/edge-vlm/remote"

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.root / "calls").read_text().splitlines()]


def lay_adb(phone: Phone, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `adb` on PATH that leads to the phone."""
    here.mkdir()
    (here / "adb.py").write_text(ADB.format(root=str(phone.root), serial=SERIAL, termux=TERMUX))
    (here / "adb").write_text(f"#!/bin/sh\nexec {sys.executable} -I '{here}/adb.py' \"$@\"\n")
    (here / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", str(here), prepend=":")


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Phone:
    phone = Phone(tmp_path / "phone")
    phone.edge()
    lay_adb(phone, tmp_path / "here", monkeypatch)
    return phone


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle("a phone's $(id) bundle")


ON = f"adb:{SERIAL}"


def test_a_bundle_is_measured_on_a_phone(phone: Phone, bundle: Bundle) -> None:
    said = call("bench", bundle.path, "--on", ON, "-r", 2, "-o", "json")
    assert said.code == 0, said.err
    assert said.json == [{**RESULT, "host": ON, "device": "A Board"}]
    (there,) = phone.bundles()
    assert there.name == bundle.path.name
    assert phone.called() == ["bench", str(there), "--output=json", "--repetitions=2"]
    Bundle.open(there).check()
    assert {tuple(words[:4]) for words in phone.calls()} == {("-s", SERIAL, "shell", "-T")}
    assert all(len(words) == 5 for words in phone.calls())
    before = phone.stored()
    assert call("bench", bundle.path, "--on", ON).code == 0
    assert phone.stored() == before


def test_termux_is_entered_where_adbs_shell_has_no_package(phone: Phone, bundle: Bundle) -> None:
    termux = phone.root / TERMUX[1:]
    (termux / "usr/bin").mkdir(parents=True)
    (phone.bin / "edge").rename(termux / "usr/bin/edge")
    said = call("bench", bundle.path, "--on", ON, "-o", "json")
    assert said.code == 0, said.err
    (there,) = (termux / "home/.cache/edge-vlm/remote/bundles").glob("*/*")
    Bundle.open(there).check()
    assert phone.called()[1] == str(there)
    assert phone.calls()[-1][4].startswith(f"run-as com.termux env HOME={TERMUX}/home PREFIX={TERMUX}/usr ")


def test_a_phone_without_the_package(phone: Phone, bundle: Bundle) -> None:
    (phone.bin / "edge").unlink()
    said = call("bench", bundle.path, "--on", ON)
    assert said.code == 1
    assert f"error: {ON}: edge-vlm is not installed there\n" in said.err
    assert "pip install -U 'edge-vlm[onnxruntime]'" in said.err
    assert "adb -s 'adb-0A1B (2)' forward tcp:8022 tcp:8022 and --on ssh://localhost:8022" in said.err


def test_a_phone_that_is_not_there(phone: Phone, bundle: Bundle) -> None:
    said = call("bench", bundle.path, "--on", "adb:emulator-5554")
    assert said.err.startswith("error: adb:emulator-5554: adb does not see it\n") and "adb devices -l" in said.err


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (
            "error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set",
            "it does not trust this machine",
        ),
        ("error: device offline", "it is offline"),
        ("error: closed", "the connection was lost"),
        ("* cannot connect to daemon: Connection refused", "adb's server does not start"),
    ],
)
def test_a_phone_that_does_not_answer(
    phone: Phone, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, trouble: str, message: str
) -> None:
    monkeypatch.setenv("FAKE_ADB_TROUBLE", trouble)
    said = call("bench", bundle.path, "--on", ON)
    assert said.code == 1
    assert said.err.startswith(f"error: {ON}: {message}")


def test_an_older_package_on_a_phone(phone: Phone, bundle: Bundle) -> None:
    phone.edge(doctor={**DOCTOR, "version": "0.0.1"})
    assert "edge-vlm 0.0.1 there is older than" in call("bench", bundle.path, "--on", ON).err
