"""What the measuring processes do and say, on the engine that computes nothing."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import MAIN
from conftest import REPOSITORY
from fakes import picture, words, write_model_bundle
from PIL import Image

from edge.bench import output, process, runner
from edge.bench import schema as rows
from edge.bench.measurements import first, loading, measuring
from edge.bench.request import Request, failure, numbers, raised, sweep
from edge.bench.sensors import Sensors
from edge.bundle import manifest as bundles
from edge.bundle.golden import Golden, Outputs
from edge.devices.peak_memory import peak_bytes
from edge.errors import BundleError, EngineError, ImageError, ParityError, UsageError
from edge.inference.session import Session

PROMPT = 1 + len("A chat. USER: ") + 4 + len("\n? ASSISTANT:")  # one id a byte
SEEING = ["picture decode", "preprocess", "vision encode"]
TESTS = [*SEEING, "pp190", "tg64", "first token", "second question", "own code per token"]


@pytest.fixture(autouse=True)
def _nothing_is_measured_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its speed, for two seconds before the first row: test_devices.py looks at that."""
    monkeypatch.setattr(runner, "measured", lambda here, lender: here)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., str]:
    def made(context: int = 400, where: str = "bundle") -> str:
        bundle = write_model_bundle(tmp_path / where, context=context)
        rows, logits = np.zeros((1, 4, 32), np.float32), np.zeros(259, np.float32)
        outputs = Outputs(rows, logits, np.zeros(16, np.int32))
        golden = Golden(np.zeros((20, 30, 3), np.uint8), np.zeros((1, 3, 28, 28), np.float32), outputs, outputs)
        golden.save(bundle.path / "golden.safetensors")
        entry = bundles.describe(bundle.path, bundle.path / "golden.safetensors")
        bundles.write_manifest(bundle.path, replace(bundle.manifest, golden=entry))
        return str(bundle.path)

    return made


def ask(path: str, **changes: Any) -> Request:
    return Request(**{"bundle": path, "engine": "null", "threads": 1, "repetitions": 2, **changes})


def samples(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "sample"]


# in one process


def test_questions_are_asked_and_the_right_answers_counted(
    make: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    lines = [("What?", "Red."), ("Where?", "Left."), ("How many?", ""), ("Who?", " Two.\n")]
    text = [json.dumps({"image": "a.png", "question": q, "answer": a}) for q, a in lines]
    (tmp_path / "prompts.jsonl").write_text("\n".join(text))
    said = {"What?": "Red.\n", "Where?": "left.", "Who?": "Two."}
    asked = Session.ask

    def ask_known(self: Session, image: Any, question: str, **options: Any) -> str:
        return said[question] if question in said else asked(self, image, question, **options)

    monkeypatch.setattr(Session, "ask", ask_known)
    found = samples(list(measuring(ask(make(), questions=str(tmp_path)))))
    assert [s["right"] for s in found if s["test"] == "3 questions"] == [True, False, True]
    row = rows.timed([s for s in found if s["test"] == "3 questions"], {})
    assert row["accuracy"] == 2 / 3 and len(row["samples_ns"]) == 3
    assert output.quality(row) == "66.7% right"


def test_questions_without_an_answer_are_none(make: Callable[..., str], tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    (tmp_path / "prompts.jsonl").write_text('{"image": "a.png", "question": "What?"}')
    with pytest.raises(UsageError, match="no answers in"):
        list(measuring(ask(make(), questions=str(tmp_path))))


def test_every_row_is_measured_so_many_times(make: Callable[..., str]) -> None:
    events = list(measuring(ask(make())))
    assert [event["event"] for event in events[:3]] == ["ready", "peak", "agreement"]
    assert [s["test"] for s in samples(events)] == [test for test in TESTS for _ in range(2)]
    assert all(s["ns"] > 0 for s in samples(events))
    ready, peak, agreement = events[:3]
    assert (ready["prompt_tokens"], ready["image_tokens"], ready["plan"]["threads"]) == (PROMPT, 4, 1)
    assert ready["kernels"] == {"null": "unknown"}
    assert peak["bytes"] > 10e6
    assert agreement["agreement_cosine"] == 0.0  # golden's logits are zeros: no direction
    assert agreement["agreement_tokens"] == 0.0
    json.dumps(events, allow_nan=False)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["golden.safetensors", "the engine"])
def test_what_is_not_finite_is_no_quality(
    make: Callable[..., str], monkeypatch: pytest.MonkeyPatch, where: str, value: float
) -> None:
    """It is a failure, and nothing is measured after it."""
    path = make()
    if where == "the engine":
        monkeypatch.setattr("edge.verify._replay", lambda *_: (np.full(259, value, np.float32), np.zeros(16, np.int32)))
    else:
        bundle = bundles.Bundle.open(path)
        golden = Golden.load(bundle.path / "golden.safetensors")
        replace(golden, fp32=replace(golden.fp32, logits=np.full(259, value, np.float32))).save(
            bundle.path / "golden.safetensors"
        )
        entry = bundles.describe(bundle.path, bundle.path / "golden.safetensors")
        bundles.write_manifest(bundle.path, replace(bundle.manifest, golden=entry))
    events: list[dict[str, Any]] = []
    with pytest.raises(ParityError, match=r"computes NaN or infinity, or its golden sample holds it: prefill"):
        events.extend(measuring(ask(path)))
    assert samples(events) == []


def test_what_is_not_counted_is_not_in_the_time(make: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock ticks with each row that is encoded: of three encodes two are counted, each of one tick."""
    ticks = count()
    now = [next(ticks)]
    encode = Session.encode_pixels

    def counted(self: Session, values: Any) -> Any:
        now[0] = next(ticks)
        return encode(self, values)

    monkeypatch.setattr(Session, "encode_pixels", counted)
    found = [s for s in samples(list(measuring(ask(make()), lambda: now[0]))) if s["test"] == "vision encode"]
    assert [s["ns"] for s in found] == [1, 1]
    assert found[1]["start"] == found[0]["start"] + 1


def test_a_picture_is_encoded_anew_for_each_first_token(
    make: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [s for s in samples(list(measuring(ask(make(), repetitions=3)))) if s["test"] == "first token"]
    for sample in found:
        assert sample["stages_ns"]["vision"] > 0 and sample["stages_ns"]["prefill"] > 0
        assert sum(sample["stages_ns"].values()) <= sample["ns"]


def test_prompts_answers_and_depths(make: Callable[..., str]) -> None:
    request = ask(make(), n_prompt=(5, 100), n_gen=(3,), n_depth=(0, 40), repetitions=1)
    found = {s["test"]: s for s in samples(list(measuring(request)))}
    assert [test for test in found if test[:2] in ("pp", "tg")] == [
        *("pp5", "pp100", "pp5 @ d40", "pp100 @ d40", "tg3", "tg3 @ d40")
    ]
    assert found["pp100 @ d40"]["n_prompt"] == 100 and found["pp100 @ d40"]["n_depth"] == 40
    assert found["tg3"]["n_gen"] == 3 and found["tg3"]["n_depth"] == 0


def test_nothing_of_a_kind_is_measured_where_0_is_asked_for(make: Callable[..., str]) -> None:
    for asked, left in (
        ({"n_prompt": (0,)}, ["tg64"]),
        ({"n_gen": (0,)}, ["pp190"]),
        ({"n_gen": (0, 3)}, ["pp190", "tg3"]),
    ):
        found = samples(list(measuring(ask(make(), repetitions=1, **asked))))
        assert [s["test"] for s in found if s["test"][:2] in ("pp", "tg")] == left
        assert {"first token", "own code per token"} <= {s["test"] for s in found}


def test_a_small_context_shortens_what_was_not_asked_for(make: Callable[..., str]) -> None:
    path = make(context=50)
    assert {"pp50", "tg50"} <= {s["test"] for s in samples(list(measuring(ask(path, repetitions=1))))}
    with pytest.raises(UsageError, match="51 tokens after 0 are more than a context of 50"):
        list(measuring(ask(path, n_prompt=(51,))))
    with pytest.raises(UsageError, match="20 tokens after 40 are"):
        list(measuring(ask(path, n_gen=(20,), n_prompt=(1,), n_depth=(40,))))


def test_the_first_positions_of_a_prompt() -> None:
    image = picture(1)
    prompt = [words("ab"), image, words("xyz")]
    assert [len(s) for s in first(prompt, 2)] == [2]
    _, cut = first(prompt, 5)
    assert np.array_equal(cut.rows, image.rows[:3]) and cut.key != image.key
    assert [len(s) for s in first(prompt, 9)] == [2, 4, 3]
    assert [s.ids for s in first(prompt, 14)[2:]] == [words("xyz").ids, words("xyz").ids, words("xy").ids]


def test_a_picture_of_ones_own(make: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = make(), []
    encode = Session.encode_pixels
    monkeypatch.setattr(Session, "encode_pixels", lambda self, v: (seen.append(v), encode(self, v))[1])
    list(measuring(ask(path, repetitions=1)))
    golden = seen[-1]
    Image.fromarray(np.full((9, 9, 3), 200, np.uint8)).save(tmp_path / "own.png")
    list(measuring(ask(path, repetitions=1, picture=str(tmp_path / "own.png"))))
    assert not np.array_equal(seen[-1], golden)
    with pytest.raises(ImageError, match="no image at"):
        list(measuring(ask(path, picture=str(tmp_path / "none.png"))))


def test_sustained_speed_comes_in_windows(make: Callable[..., str]) -> None:
    """A clock of 0.1 s a look: a window takes answers until a second is full."""
    clock = (n * 100_000_000 for n in count())
    events = list(measuring(ask(make(), repetitions=1, sustained=20.0), lambda: next(clock)))
    windows = [s for s in samples(events) if s["test"] == "sustained tg64"]
    assert len(windows) > 3
    assert all(w["tokens"] % 64 == 0 and w["ns"] == w["tokens"] // 64 * 100_000_000 for w in windows)
    assert all(w["ns"] >= 1_000_000_000 for w in windows[:-1])


def test_loading_is_measured_until_a_question_could_be_answered(make: Callable[..., str]) -> None:
    (event,) = loading(ask(make()))
    assert event["test"] == "load" and event["ns"] > 0


# processes


def test_the_rows_of_two_bundles(make: Callable[..., str]) -> None:
    paths = [make(where="a"), make(where="b")]
    found = list(runner.bench([ask(path, n_gen=(8,)) for path in paths], Sensors(Path("/nowhere"))))
    tests = ["peak memory", *SEEING, "pp190", "tg8", *TESTS[5:], "load"]
    assert [(row["model_filename"], row["test"]) for row in found] == [(p, t) for p in paths for t in tests]
    by_test = {row["test"]: row for row in found[: len(tests)]}
    speed = by_test["tg8"]
    assert (speed["n_gen"], speed["n_threads"], speed["backends"]) == (8, 1, "null")
    assert speed["kernels"] == {"null": "unknown"}
    assert speed["samples_ts"] == [8e9 / ns for ns in speed["samples_ns"]]
    assert speed["avg_ts"] == pytest.approx(sum(speed["samples_ts"]) / 2)
    assert len(by_test["load"]["samples_ns"]) == 2
    assert by_test["peak memory"]["peak_bytes"] > 10e6
    assert not {"energy_j", "temp_c", "clock_mhz"} & {key for row in found for key in row}  # absent: not zero


def test_peak_memory_is_of_the_process_alone(make: Callable[..., str]) -> None:
    held = np.ones(300_000_000, np.uint8)
    row = next(runner.bench([ask(make(), repetitions=1)]))
    assert isinstance(row, dict) and row["peak_bytes"] < held.nbytes


def test_what_fails_is_told_and_the_others_go_on(make: Callable[..., str]) -> None:
    path = make()
    found = list(runner.bench([ask(path, engine="none"), ask(path, repetitions=1)]))
    assert isinstance(found[0], UsageError) and found[0].message == "no engine 'none'" and found[0].hint
    assert [row["test"] for row in found[1:] if isinstance(row, dict)][-1] == "load"
    with pytest.raises(BundleError, match="no bundle at"):
        next(runner.bench([ask(path), ask(f"{path}/none")]))


def test_a_process_that_is_killed_is_told_of(make: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    events = process.events
    monkeypatch.setattr(runner, "events", lambda child, request: (child.kill(), events(child, request))[1])
    (error,) = runner.bench([ask(make())])
    assert isinstance(error, EngineError)
    assert error.message == "the measuring process ended by SIGKILL" and "memory" in str(error.hint)


@pytest.mark.parametrize("wrong", [(0, -5), (3, 0)])
def test_a_clock_that_goes_back_is_said(
    make: Callable[..., str], monkeypatch: pytest.MonkeyPatch, wrong: tuple[int, int]
) -> None:
    events = [{"event": "sample", "test": "pp5", "start": 0, "ns": ns, "n_prompt": 5} for ns in (wrong[0], wrong[1])]
    monkeypatch.setattr(runner, "events", lambda child, request: iter([dict(e) for e in events]))
    found = list(runner.bench([ask(make(), repetitions=1)]))
    if wrong[0]:
        assert found[0]["samples_ns"] == [3] and found[0]["stddev_ns"] is None
        assert found[0]["warnings"] == ["the clock stood still or went backwards: 1 repetitions were left out"]
    else:
        assert isinstance(found[0], EngineError) and "at every repetition" in found[0].message


UNMEASURED = f"from edge.bench import runner; runner.measured = lambda here, lender: here; {MAIN}"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_a_kill_keep_what_was_measured(
    make: Callable[..., str], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out, kept = tmp_path / "out.json", tmp_path / "kept.json"
    call = ["bench", make(), "--engine", "null", "-r", "100000", "-n", "1", "-o", "json", "--save", str(kept)]
    with out.open("w") as file:
        going = subprocess.Popen(
            [sys.executable, "-c", UNMEASURED, *call], stdout=file, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
        )
    deadline = time.monotonic() + 60
    while "peak memory" not in out.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    going.send_signal(number)
    assert going.wait(30) == code
    rows = json.loads(out.read_text())
    assert rows[0]["test"] == "peak memory" and rows == json.loads(kept.read_text())
    begun = rows[-1]
    assert begun["test"] == "picture decode" and 0 < len(begun["samples_ns"]) < 100_000


def test_a_process_ends_with_the_one_that_asked(make: Callable[..., str]) -> None:
    command = [sys.executable, "-m", "edge.bench", ask(make(), repetitions=10**6, n_gen=(1,)).to_text()]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert child.stdin and child.stdout and child.stdout.readline()
    child.stdin.close()
    child.stdout.close()
    assert child.wait(30) != 0


# requests


def test_a_request_as_text() -> None:
    request = ask("a b", n_prompt=(1, 2), cache="q8_0", sustained=3.5)
    assert Request.from_text(request.to_text()) == request


def test_errors_keep_their_kind() -> None:
    error = raised(json.loads(json.dumps(failure(ImageError("no", hint="yes")))))
    assert (type(error), error.message, error.hint) == (ImageError, "no", "yes")
    assert type(raised({"kind": "Unheard", "message": "m", "hint": None})) is EngineError


def test_a_sweep() -> None:
    found = sweep(["a", "b"], "x, y", "1,2", "", "", Request(repetitions=7))
    assert [(r.bundle, r.engine, r.threads) for r in found] == [
        (b, e, t) for b in "ab" for e in ("x", "y") for t in (1, 2)
    ]
    assert all(r.repetitions == 7 and r.cache is None for r in found)
    assert [(r.engine, r.threads, r.cache) for r in sweep(["a"], "", "", "f16,q8_0", "", Request())] == [
        (None, 0, "f16"),
        (None, 0, "q8_0"),
    ]
    with pytest.raises(UsageError, match="no cache of 'f8'"):
        sweep(["a"], "", "", "f8", "", Request())


@pytest.mark.parametrize("text", ["x", "1,,2", "0", "-1", "1.5", "²"])
def test_what_is_no_list_of_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="-p is"):
        numbers("-p", text)
    assert numbers("-p", " 1, 20 ") == (1, 20)


# memory


def test_the_peak_counts_what_was_let_go() -> None:
    before = peak_bytes()
    assert before is not None
    np.ones(before + 50_000_000, np.uint8)  # as much again, and 50 MB
    after = peak_bytes()
    assert after is not None and after >= before + 50_000_000


def test_the_peak_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    assert peak_bytes() is None
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("resource.getrusage", lambda who: SimpleNamespace(ru_maxrss=123_400_000))
    assert peak_bytes() == 123_400_000
