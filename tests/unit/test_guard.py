"""What a baseline is held to: the proof, the speed, and the versions that stand beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_fakes import run
from commands import Said, call

from edge.bench import guard, runner
from edge.bench.request import Request
from edge.bundle.manifest import Bundle
from edge.errors import EngineError

RIGHT = {"ok": True, "rows": []}
WRONG = {"ok": False, "rows": [{"stage": "prefill", "ok": False}, {"stage": "vision", "ok": True}]}


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle()


@pytest.fixture
def watch(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """`edge guard` of the bundle, on a machine of such a pace, proof and versions."""

    def watched(*options: object, pace: float = 1.0, proof: Any = RIGHT, versions: Any = None) -> Said:
        def prove(_: Request) -> dict[str, Any]:
            if isinstance(proof, Exception):
                raise proof
            return proof

        monkeypatch.setattr(runner, "prove", prove)
        monkeypatch.setattr(runner, "bench", lambda _: iter(run(pace)))
        monkeypatch.setattr(guard, "_versions", lambda _: versions or {"onnxruntime": "1.32.0"})
        return call("guard", bundle.path, "--baseline", tmp_path / "kept.json", *options)

    return watched


def test_the_first_time_writes_the_baseline(watch: Callable[..., Said], tmp_path: Path) -> None:
    said = watch()
    assert said.code == 0
    assert said.err.splitlines()[-1] == f"{tmp_path / 'kept.json'}: the baseline from now on"
    assert guard.read(tmp_path / "kept.json")["tiny balanced"]["engines"] == {"onnxruntime": "1.32.0"}
    assert watch().code == 0


def test_a_slower_machine_fails_by_name(watch: Callable[..., Said], tmp_path: Path) -> None:
    watch()
    kept = (tmp_path / "kept.json").read_bytes()
    said = watch(pace=1.5, versions={"onnxruntime": "1.33.0", "new": "1"})
    assert said.code == 1
    assert "tiny balanced: new none → 1\ntiny balanced: onnxruntime 1.32.0 → 1.33.0\n" in said.err
    assert "threads: tg64: worse by " in said.err
    assert (tmp_path / "kept.json").read_bytes() == kept
    assert watch("--max-slower", 60, pace=1.5).code == 0
    assert watch("--renew", pace=1.5).code == 0
    assert watch(pace=1.5).code == 0


@pytest.mark.parametrize(
    ("proof", "said"),
    [
        (WRONG, "tiny balanced: does not compute the same model: prefill"),
        (
            EngineError("the measuring process ended by SIGSEGV"),
            "tiny balanced: the measuring process ended by SIGSEGV",
        ),
    ],
)
def test_another_model_or_a_crash_fails(watch: Callable[..., Said], tmp_path: Path, proof: Any, said: str) -> None:
    assert watch(proof=proof).code == 1
    assert not (tmp_path / "kept.json").exists()
    watch()
    kept = (tmp_path / "kept.json").read_bytes()
    failed = watch("--json", "--renew", proof=proof)
    assert failed.code == 1
    assert said in failed.err
    assert json.loads(failed.out)["ok"] is False
    assert (tmp_path / "kept.json").read_bytes() == kept


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"schema": 1}', b'{"schema": 2, "bundles": {}}', 
     b'{"schema": 1, "bundles": {"tiny balanced": {}}}',
     b'{"schema": 1, "bundles": {"tiny balanced": {"engines": [], "rows": []}}}', b"[" * 10**5, b"\xff\xfe",
     b'{"schema": 1, "bundles": {"tiny balanced": {"engines": {}, "rows": [{"schema": 1}]}}}',
     b'{"schema": 1, "bundles": {"other": {"engines": {}, "rows": []}}}',
     b'{"schema": 1, "bundles": {"tiny balanced": {"engines": {}, "rows": []}}}' + b" " * (1 << 22)],
)  # fmt: skip
def test_what_is_no_baseline_is_said_before_the_work(
    watch: Callable[..., Said], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "kept.json").write_bytes(content)
    said = watch(proof=AssertionError("it went to work"))
    assert said.code in (1, 2)
    assert "it went to work" not in said.err
    assert "hint: " in said.err
    assert (tmp_path / "kept.json").read_bytes() == content


def test_two_bundles_of_one_name_are_told_apart(bundle: Bundle) -> None:
    said = call("guard", bundle.path, bundle.path)
    assert said.code == 2
    assert "two bundles have one name and recipe" in said.err
