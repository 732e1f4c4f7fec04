"""Who vouches for a bundle, and what commands do with one that nobody vouches for."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import call
from signing import KEY, sign, trust

from edge.bundle import trusted_keys, vouching
from edge.bundle.manifest import MANIFEST, Bundle
from edge.cli import vouched
from edge.devices import file_facts
from edge.errors import EngineError
from edge.verify import Report, Row

RIGHT = Report((Row("tokens", "stored", {"tokens": 1.0}, {"tokens": 1.0}),))
WRONG = Report((Row("tokens", "stored", {"tokens": 0.5}, {"tokens": 1.0}),))


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "LOCALAPPDATA", "APPDATA"):
        monkeypatch.setenv(name, str(tmp_path / name))


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Path:
    return make_bundle().path


def test_nobody_vouches_for_what_came_from_elsewhere(bundle: Path) -> None:
    assert vouching.voucher(bundle, ()) is None


@pytest.mark.parametrize("deed", ["edge export", "edge verify"])
def test_what_was_done_here_vouches_for_the_content(bundle: Path, deed: vouching.Deed, tmp_path: Path) -> None:
    vouching.remember(bundle, deed)
    bundle.rename(tmp_path / "elsewhere")
    assert vouching.voucher(tmp_path / "elsewhere", ()) == f"{deed} on this machine"
    data = json.loads((tmp_path / "elsewhere" / MANIFEST).read_bytes())
    data["tokenizer"]["sha256"] = "0" * 64
    (tmp_path / "elsewhere" / MANIFEST).write_text(json.dumps(data))
    assert vouching.voucher(tmp_path / "elsewhere", ()) is None


def test_a_signature_vouches_where_its_key_is_trusted(bundle: Path) -> None:
    sign(bundle)
    assert vouching.voucher(bundle, ()) is None
    trust()
    assert vouching.voucher(bundle, trusted_keys.read()) == f"the signature of {KEY.name}"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"by": "me"}', b'{"by": ["edge verify"]}'])
def test_a_damaged_memory_vouches_for_nothing(bundle: Path, content: bytes) -> None:
    vouching.remember(bundle, "edge verify")
    (place,) = file_facts.private_folder("vouched").iterdir()
    place.write_bytes(content)
    assert vouching.voucher(bundle, ()) is None


@pytest.mark.skipif(sys.platform == "win32", reason="below a user's profile nobody else may write")
def test_the_memory_of_others_vouches_for_nothing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vouching.remember(bundle, "edge verify")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert vouching.voucher(bundle, ()) is None


def test_a_place_that_cannot_be_written_costs_a_process_only(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "XDG_CACHE_HOME").write_bytes(b"a file where the folder should be")
    (tmp_path / "LOCALAPPDATA").write_bytes(b"a file where the folder should be")
    vouching.remember(bundle, "edge verify")
    assert vouching.voucher(bundle, ()) is None


# commands


class Opened:
    """Which of the two ways a command took, and with what; it answers nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ways: list[str] = []
        self.report = RIGHT
        for module, way in (("edge.inference.session", "here"), ("edge.isolation.session", "apart")):
            monkeypatch.setattr(f"{module}.load", self.refusing(f"load {way}"))
        monkeypatch.setattr("edge.verify.verify", self.verifying("verify here"))
        monkeypatch.setattr("edge.isolation.session.verify", self.verifying("verify apart"))

    def refusing(self, way: str) -> Callable[..., Any]:
        def load(path: Path, **options: Any) -> Any:
            self.ways.append(way)
            raise EngineError("no kernel")

        return load

    def verifying(self, way: str) -> Callable[..., Report]:
        def verify(bundle: Path | Bundle, **options: Any) -> Report:
            self.ways.append(way)
            return self.report

        return verify


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    return Opened(monkeypatch)


@pytest.mark.parametrize(
    ("given", "vouched_for", "way"),
    [
        ([], False, "apart"),
        ([], True, "here"),
        (["--isolated"], True, "apart"),
        (["--no-isolated"], False, "here"),
    ],
)
@pytest.mark.parametrize(("command", "does"), [("run", "load"), ("verify", "verify")])
def test_what_nobody_vouches_for_is_opened_apart(
    opened: Opened, bundle: Path, command: str, does: str, given: list[str], vouched_for: bool, way: str
) -> None:
    if vouched_for:
        vouching.remember(bundle, "edge export")
    call(command, bundle, *(["Hello"] if command == "run" else []), *given)
    assert opened.ways == [f"{does} {way}"]


def test_a_replay_that_is_right_vouches(opened: Opened, bundle: Path) -> None:
    opened.report = WRONG
    assert call("verify", bundle).code == 1
    assert vouching.voucher(bundle, ()) is None
    opened.report = RIGHT
    assert call("verify", bundle).code == 0
    assert vouching.voucher(bundle, ()) == "edge verify on this machine"
    call("run", bundle, "Hello")
    assert opened.ways == ["verify apart", "verify apart", "load here"]


def test_a_key_that_is_not_known_is_named(opened: Opened, bundle: Path) -> None:
    sign(bundle)
    said = call("run", bundle, "Hello")
    assert f"is signed by {KEY.name}, which is not in {trusted_keys.place()}" in said.err
    trust()
    call("run", bundle, "Hello")
    assert opened.ways == ["load apart", "load here"]


def test_a_key_that_is_given_vouches(opened: Opened, bundle: Path) -> None:
    sign(bundle)
    call("run", bundle, "Hello", "--trusted-key", base64.b64encode(b"Ed" + KEY.id + KEY.point).decode())
    assert opened.ways == ["load here"]


def test_what_is_served_is_replayed_once(opened: Opened, bundle: Path) -> None:
    for _ in range(2):
        vouched.introduced(bundle, debug=False, threads=1)
    assert opened.ways == ["verify apart"]


def test_what_computes_otherwise_is_served_and_not_vouched_for(
    opened: Opened, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened.report = WRONG
    vouched.introduced(bundle, debug=False)
    assert "does not compute here what it did when it was exported" in capsys.readouterr().err
    assert vouching.voucher(bundle, ()) is None


def test_an_export_vouches(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = SimpleNamespace(
        notes=(), costs={}, path=bundle, bytes=1, seconds=1.0, fit=None, prompt="x", report=RIGHT, next_command="x"
    )
    side = SimpleNamespace(ExportRequest=SimpleNamespace, export=lambda request, report: done)
    monkeypatch.setattr("edge.plugins.load", lambda package, name: side)
    assert call("export", "CKPT", "-o", bundle, "--json").code == 0
    assert vouching.voucher(bundle, ()) == "edge export on this machine"


def test_inspect_says_who_vouches(bundle: Path) -> None:
    assert "nothing: it runs in a process of its own" in " ".join(call("inspect", bundle).out.split())
    sign(bundle)
    trust()
    said = " ".join(call("inspect", bundle).out.split())
    assert f"{KEY.name}: a test" in said
    assert f"the signature of {KEY.name}" in said
