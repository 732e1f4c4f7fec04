"""`--on adb:SERIAL` where the phone has the Android demo and no Python: at the border of adb's command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call
from remotes import RESULT
from test_remote_adb import ON, Phone, lay_adb

from edge.bundle.manifest import Bundle
from edge.remote.app import FOLDER, PACKAGE

ALIVE, DEAD = "echo 4711", "exit 1"


class AppPhone(Phone):
    """Its `am` does what the app does when it is started so."""

    def app(self, writes: str, alive: str = ALIVE) -> None:
        self.script("pm", f'[ "$1 $2" = "path {PACKAGE}" ]')
        self.script("getprop", "echo Pixel Ω")
        self.script("dumpsys", "echo '    versionName=0.2.0'")
        self.script("pidof", alive)
        result = shlex.quote(str(self.place / "bench.json"))
        self.script(
            "am",
            f"""for word in "$@"; do printf '%s\\0' "$word"; done >{shlex.quote(str(self.root))}/called
if [ -n {shlex.quote(writes)} ]; then echo {shlex.quote(writes)} >{result}.part; mv {result}.part {result}; fi""",
        )

    @property
    def place(self) -> Path:
        return self.root / FOLDER[1:]


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppPhone:
    phone = AppPhone(tmp_path / "phone")
    phone.place.mkdir(parents=True)
    lay_adb(phone, tmp_path / "here", monkeypatch)
    return phone


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle("a phone's bundle")


def test_the_app_is_driven_and_its_rows_are_ours(phone: AppPhone, bundle: Bundle) -> None:
    phone.app(json.dumps([RESULT]))
    (phone.place / "bench.json").write_text("[]")  # of another time
    said = call("bench", bundle.path, "--on", ON, "-r", 3, "-o", "json")
    assert said.code == 0, said.err
    assert said.json == [{**RESULT, "host": ON, "device": "Pixel Ω"}]
    (there,) = phone.place.glob("bundles/*/*")
    Bundle.open(there).check()
    start = ["start", "-n", f"{PACKAGE}/.MainActivity"]
    path = str(there).removeprefix(str(phone.root))
    assert [word.removeprefix(str(phone.root)) for word in phone.called()] == [
        *start, "--es", "bench", path, "--ei", "repetitions", "3",
    ]  # fmt: skip


def test_what_the_app_says_is_the_error(phone: AppPhone, bundle: Bundle) -> None:
    phone.app(json.dumps({"error": "tiny needs some 900 MB, and 300 MB are free."}))
    said = call("bench", bundle.path, "--on", ON)
    assert said.code == 1
    assert said.err.splitlines()[-1] == f"error: {ON}: tiny needs some 900 MB, and 300 MB are free."


def test_an_app_that_dies_is_told(phone: AppPhone, bundle: Bundle) -> None:
    phone.app("", alive=DEAD)
    said = call("bench", bundle.path, "--on", ON)
    assert said.code == 1
    assert "the Android demo there ended while it measured" in said.err
    assert "logcat" in said.err


@pytest.mark.parametrize("written", ["no JSON", "[]", "7", "[7]"])
def test_nonsense_is_no_result(phone: AppPhone, bundle: Bundle, written: str) -> None:
    phone.app(written)
    said = call("bench", bundle.path, "--on", ON)
    assert said.code == 1
    assert "the Android demo there gave no " in said.err


def test_what_the_app_cannot_do_is_refused_before_anything_is_copied(phone: AppPhone, bundle: Bundle) -> None:
    phone.app(json.dumps([RESULT]))
    said = call("bench", bundle.path, "--on", ON, "-p", "64")
    assert said.code == 2
    assert "knows no --n-prompt=64" in said.err
    assert not list(phone.place.glob("files/*"))


def test_a_phone_with_neither_is_told_of_both(phone: AppPhone, bundle: Bundle) -> None:
    phone.script("pm", "exit 1")
    said = call("bench", bundle.path, "--on", ON)
    assert said.code == 1
    assert "edge-vlm is not installed there" in said.err
    assert "make android" in said.err and "pip install -U" in said.err
