"""Measuring processes of bundles that nothing vouches for: bounded, and believed in nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import write_golden, write_model_bundle

from edge.bench import process, runner
from edge.bench.request import Request
from edge.bundle import vouching
from edge.errors import EdgeError, EngineError

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals")
linux = pytest.mark.skipif(sys.platform != "linux", reason="what Linux tells of a process")


@pytest.fixture(autouse=True)
def _nothing_is_measured_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "measured", lambda here, lender: here)


@pytest.fixture
def asked(tmp_path: Path) -> Request:
    bundle = write_model_bundle(tmp_path / "bundle", context=400)
    write_golden(bundle)
    return Request(str(bundle.path), engine="null", threads=1, n_gen=(1,), repetitions=1)


@contextmanager
def saying(script: str) -> Iterator[subprocess.Popen[str]]:
    """A process that says what the script does, and then nothing."""
    program = f"import json, time\ndef say(**event): print(json.dumps(event), flush=True)\n{script}\ntime.sleep(600)"
    command = [sys.executable, "-P", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", **process._NEW_GROUP) as child:
        try:
            yield child
        finally:
            child.kill()


@linux
@pytest.mark.parametrize("vouched", [True, False])
def test_only_what_nothing_vouches_for_is_bounded(
    asked: Request, vouched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if vouched:
        vouching.remember(Path(asked.bundle), "edge export")
    limits: list[dict[str, str]] = []
    started = process.events

    def looked(child: subprocess.Popen[str], request: Request) -> Iterator[process.Event]:
        for event in started(child, request):
            if lines := Path(f"/proc/{child.pid}/limits").read_text().splitlines():  # none, once it has ended
                limits.append({line[:26].strip(): line[26:].split()[0] for line in lines})
            yield event

    monkeypatch.setattr(runner, "events", looked)
    here = Path("/proc/self/limits").read_text()
    found = list(runner.bench([asked]))
    assert not [row for row in found if isinstance(row, EdgeError)]
    for name in ("Max data size", "Max file size"):
        assert {found[name] == "unlimited" for found in limits} == {vouched and f"{name:26}unlimited" in here}


@posix
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("", r"said nothing for 0\.5 s, and was ended"),
        ("print('{', flush=True)", "said what is no measurement: JSONDecodeError"),
        ("print('x' * (1 << 21), flush=True)", "said what is no measurement: JSONDecodeError"),
        ("print([3], flush=True)", "said what is no measurement: TypeError"),
        ("say(event='warning')", "no text of 8,192 letters"),
        ("[say(event='warning', text='slow') for _ in range(101)]", "more than 100 warnings"),
        ("[say(event='peak', bytes=1) for _ in range(9)]", "more than 8 events"),
    ],
)
def test_what_is_no_measurement_is_one_error(script: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SILENCE", 0.5 if not script else 600.0)
    monkeypatch.setattr(process, "_MOST", 8)
    with saying(script) as child, pytest.raises(EngineError, match=message):
        list(process.events(child, Request("a bundle", bounded=True)))


@pytest.mark.parametrize(
    "events",
    [
        [{"event": "sample", "test": "pp5", "start": 0, "ns": "much", "n_prompt": 5}],
        [{"event": "sample", "test": "pp5", "start": 0, "ns": float("inf"), "n_prompt": 5}],
        [{"event": "sample", "test": ["pp5"], "start": 0, "ns": 1}],
        [{"event": "sample"}],
        [{"event": "ready", "plan": []}],
        [{"event": "agreement"}],
        [{"event": "peak", "bytes": -1}, {"event": "agreement"}],
        [{"event": "error", "kind": "first_line", "message": "m", "hint": None}],
    ],
)
def test_figures_that_are_none_are_no_row(
    asked: Request, events: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "events", lambda child, request: iter([dict(event) for event in events]))
    found = list(runner.bench([asked]))
    assert found and isinstance(found[-1], EdgeError)
    assert not [row for row in found if not isinstance(row, EdgeError)]


@pytest.mark.parametrize("report", [{}, {"ok": 1, "rows": []}, {"ok": True, "rows": [{"stage": "x"}]}, 3])
def test_a_proof_that_is_none_proves_nothing(asked: Request, report: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "events", lambda child, request: iter([{"event": "proof", "report": report}]))
    with pytest.raises(EngineError, match="no measurement"):
        runner.prove(asked)
