from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import write_model_bundle
from numpy.typing import NDArray

from edge import bench as benches
from edge import bundle as bundles
from edge.bench import UNITS, bench, peak_rss_mb, timed
from edge.bundle import Bundle
from edge.errors import ContextError, ImageError, UsageError
from edge.golden import Golden, Outputs
from edge.session import Session, load

PROMPT = 1 + len("A chat. USER: ") + 4 + len("\n? ASSISTANT:")  # one id a byte


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every session that a bench opens; all of them compute nothing."""
    calls: list[dict[str, Any]] = []

    def record(path: Path, **options: Any) -> Session:
        calls.append(options)
        return load(path, **{**options, "engine": "null"})

    monkeypatch.setattr(benches, "load", record)
    return calls


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Bundle]:
    def made(context: int = 400) -> Bundle:
        bundle = write_model_bundle(tmp_path / "bundle", context=context)
        rows, logits = np.zeros((1, 4, 32), np.float32), np.zeros(259, np.float32)
        outputs = Outputs(rows, logits, np.zeros(16, np.int32))
        golden = Golden(np.zeros((20, 30, 3), np.uint8), np.zeros((1, 3, 28, 28), np.float32), outputs, outputs)
        golden.save(bundle.path / "golden.npz")
        entry = bundles.describe(bundle.path, bundle.path / "golden.npz")
        bundles.write_manifest(bundle.path, replace(bundle.manifest, golden=entry))
        return Bundle.open(bundle.path)

    return made


def test_every_stage_is_measured(make: Callable[..., Bundle], opened: list[dict[str, Any]]) -> None:
    found = bench(make().path, max_tokens=5, repeats=3, threads=1)
    assert [(s.name, s.unit) for s in found.stages] == list(UNITS.items())
    assert all(0 < s.min <= s.median <= s.max for s in found.stages)
    assert (found.repeats, found.generated_tokens, found.threads) == (3, 5, 1)
    assert (found.prompt_tokens, found.image_tokens) == (PROMPT, 4)
    first, image, vision = (next(s for s in found.stages if s.name == n) for n in ("first token", "image", "vision"))
    assert first.min > image.min + vision.min
    assert json.loads(json.dumps(found.to_json()))["stages"][0]["name"] == "load"


def test_the_warm_up_is_not_counted(
    make: Callable[..., Bundle], opened: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1_000_000))
    monkeypatch.setattr(benches, "timed", lambda work: (work(), float(next(clock))))
    found = bench(make().path, max_tokens=2, repeats=2)
    # Five timings and one of the null engine in each of the three rounds: loading is the first two of them.
    assert {s.name: (s.min, s.max) for s in found.stages}["load"] == (6.0 + 7.0, 12.0 + 13.0)
    assert len(opened) == 6


def test_overhead_is_measured_with_the_engine_that_computes_nothing(
    make: Callable[..., Bundle], opened: list[dict[str, Any]]
) -> None:
    bench(make().path, max_tokens=2, repeats=1, threads=2)
    assert opened == [{"threads": 2, "cache": None}, {"threads": 2, "engine": "null"}] * 2


def test_an_answer_longer_than_the_context_is_cut(make: Callable[..., Bundle], opened: list[dict[str, Any]]) -> None:
    assert bench(make(context=PROMPT + 3).path, max_tokens=50, repeats=1).generated_tokens == 3


def test_a_prompt_that_does_not_fit(make: Callable[..., Bundle], opened: list[dict[str, Any]]) -> None:
    with pytest.raises(ContextError):
        bench(make(context=PROMPT - 1).path, repeats=1)


def test_a_picture_of_ones_own(
    make: Callable[..., Bundle], opened: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[NDArray[np.float32]] = []
    encode = Session.encode_pixels

    def record(self: Session, values: NDArray[np.float32]) -> Any:
        seen.append(values)
        return encode(self, values)

    monkeypatch.setattr(Session, "encode_pixels", record)
    path = make().path
    bench(path, max_tokens=1, repeats=1)
    golden = seen[-1]
    bench(path, picture=np.full((9, 9, 3), 200, np.uint8), max_tokens=1, repeats=1)
    assert not np.array_equal(seen[-1], golden)
    with pytest.raises(ImageError):
        bench(path, picture=str(tmp_path / "none.png"), repeats=1)


@pytest.mark.parametrize("call", [{"max_tokens": 0}, {"repeats": 0}])
def test_nothing_to_measure(make: Callable[..., Bundle], call: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        bench(make().path, **call)


def test_timed_gives_the_result_and_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.25])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert timed(lambda: "done") == ("done", 250.0)


def test_the_peak_counts_what_was_let_go() -> None:
    before = peak_rss_mb()
    np.ones(int(before * 1e6) + 50_000_000, np.uint8)  # as much again, and 50 MB
    assert peak_rss_mb() >= before + 50


def test_the_peak_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    assert peak_rss_mb() == 0
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("resource.getrusage", lambda who: SimpleNamespace(ru_maxrss=123_400_000))
    assert peak_rss_mb() == 123.4
