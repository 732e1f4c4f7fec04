"""Engines and threads that were measured here, and what a call without them takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_fakes import run
from commands import call

from edge.bench import runner, tuning
from edge.bench.request import Request
from edge.bench.tuning import Candidate
from edge.bundle.manifest import Bundle
from edge.devices import DeviceProfile, detect
from edge.engines import EngineInfo, installed_engines
from edge.errors import EngineError
from edge.planning import tuned
from edge.planning.tuned import Tuned


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edge-vlm" / "tuned"


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle()


def info(name: str, format: str = "onnx", installed: bool = True, version: str = "1") -> EngineInfo:
    return EngineInfo(name, (format,), name, installed, version, None)


def here(threads: int = 4, **facts: Any) -> DeviceProfile:
    return replace(detect(), threads=threads, **facts)


@pytest.mark.parametrize(
    ("engines", "threads", "logical", "expected"),
    [
        (["a"], 4, 8, [(None, 4), (None, 2), (None, 8)]),
        (["a"], 1, 1, [(None, 1)]),
        (["a", "b"], 2, 2, [(None, 2), (None, 1), ("a", 2), ("a", 1), ("b", 2), ("b", 1)]),
    ],
)
def test_candidates_are_engines_and_threads(
    bundle: Bundle, engines: Sequence[str], threads: int, logical: int, expected: list[tuple[str | None, int]]
) -> None:
    found = tuning.candidates(bundle.manifest, here(threads), [info(name) for name in engines], logical)
    assert [(one.engine, one.threads) for one in found] == expected


def test_the_fastest_is_one_that_computes_the_model(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = {1: 2.0, 2: 1.0, 4: 0.5, 8: 0.1}

    def prove(request: Request) -> dict[str, Any]:
        if request.threads == 8:
            raise EngineError("the measuring process ended by SIGSEGV")
        return {"ok": request.threads != 4, "rows": [{"stage": "vision", "ok": request.threads != 4}]}

    monkeypatch.setattr(runner, "prove", prove)
    monkeypatch.setattr(runner, "bench", lambda requests: iter(run(pace[requests[0].threads])))
    found = list(tuning.tune(bundle, [Candidate(None, n) for n in pace]))
    assert [one.why for one in found] == [
        "",
        "",
        "computes another model: vision",
        "the measuring process ended by SIGSEGV",
    ]
    assert found[1].seconds == pytest.approx(6.6 * 3.01 / 3 + 7.1 * 3.01 / 3, rel=1e-2)
    best = tuning.fastest(found)
    assert best is not None
    assert best.candidate == Candidate(None, 2)
    assert tuning.fastest(found[2:]) is None


def test_what_was_kept_holds_for_the_same_only(bundle: Bundle, make_bundle: Callable[..., Bundle]) -> None:
    engines = [info("a"), info("b")]
    tuned.keep(bundle, here(), engines, Tuned("b", 3, 1.5))
    assert tuned.choice(bundle, here(), engines) == Tuned("b", 3, 1.5)
    assert tuned.choice(bundle, here(name="another processor"), engines) is None
    assert tuned.choice(bundle, here(), [info("a"), info("b", version="2")]) is None
    assert tuned.choice(bundle, here(), [info("a")]) is None
    assert tuned.choice(make_bundle("other", name="other"), here(), engines) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"engine": "gone", "threads": 2, "seconds": 1}', b"\xff" * 99,
                b'{"engine": null, "threads": 0, "seconds": 1}', b'{"engine": null, "threads": true, "seconds": 1}',
                b'{"engine": [], "threads": 2, "seconds": 1}', b'{"engine": null, "threads": 2}']
)  # fmt: skip
def test_what_is_damaged_is_not_taken(bundle: Bundle, cache: Path, content: bytes) -> None:
    engines = [info("a")]
    tuned.keep(bundle, here(), engines, Tuned(None, 2, 1.0))
    (file,) = cache.iterdir()
    file.write_bytes(content)
    assert tuned.choice(bundle, here(), engines) is None


def test_a_session_takes_it_unless_the_call_says_otherwise(served_bundle: Path) -> None:
    from edge.inference.session import load

    bundle = Bundle.open(served_bundle)
    with load(served_bundle, engine="null") as session:
        usual = session.plan.threads
    tuned.keep(bundle, detect(), installed_engines(), Tuned("null", usual + 3, 1.0))
    with load(served_bundle) as session:
        assert (session.plan.engines, session.plan.threads) == (("null",), usual + 3)
    with load(served_bundle, engine="null", threads=1) as session:
        assert session.plan.threads == 1


def test_the_command_keeps_the_fastest(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "candidates", lambda *_: [Candidate(None, 1), Candidate(None, 2)])
    monkeypatch.setattr(runner, "prove", lambda _: {"ok": True, "rows": []})
    monkeypatch.setattr(runner, "bench", lambda requests: iter(run(2.0 / requests[0].threads)))
    said = call("tune", bundle.path)
    assert said.code == 0
    assert said.out.splitlines()[-1] == "kept: the usual engine, 2 threads"
    kept = tuned.choice(bundle, detect(), installed_engines())
    assert kept is not None
    assert kept.threads == 2
    assert json.loads(call("tune", bundle.path, "--json").out)["kept"] == {
        "engine": None,
        "threads": 2,
        "seconds": kept.seconds,
    }


def test_where_nothing_computes_the_model_nothing_is_kept(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "prove", lambda _: {"ok": False, "rows": [{"stage": "vision", "ok": False}]})
    said = call("tune", bundle.path)
    assert said.code == 1
    assert f"no engine here computes {bundle.path}" in said.err
    assert not cache.exists()
