"""Rows as text and back; what was kept, and what became slower."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_fakes import facts, run, samples
from hypothesis import given
from hypothesis import strategies as st

from edge.bench import results, schema
from edge.bench.compare import compare, describe
from edge.bench.output import FIELDS, WRITERS, measured
from edge.bench.schema import Row
from edge.errors import EdgeError

# llama-bench's, as its -o json writes them (llama.cpp, tools/llama-bench)
PEER = ("build_commit", "cpu_info", "backends", "model_filename", "model_type", "model_size", "n_threads", "type_k")
PEER += ("type_v", "n_prompt", "n_gen", "n_depth", "test_time", "avg_ns", "stddev_ns", "avg_ts", "stddev_ts")
PEER += ("samples_ns", "samples_ts")
ROWS = run(seconds=60) + run(2.0, n_threads=2, model_type="a | b")


def written(output: str, found: list[Row]) -> str:
    writer = WRITERS[output]()
    return writer.begin() + "".join(map(writer.row, found)) + writer.end()


def test_mean_and_deviation_by_hand() -> None:
    row = schema.timed(samples("tg64", 1000, 2000, n_gen=64), facts())
    assert (row["avg_ns"], row["stddev_ns"]) == (1_500_000_000, round(1e9 / math.sqrt(2)))
    assert (row["avg_ts"], row["samples_ts"]) == (48.0, [64.0, 32.0])
    assert row["stddev_ts"] == pytest.approx(32 / math.sqrt(2))


def test_one_repetition_has_no_deviation() -> None:
    row = schema.timed(samples("pp190", 1000, n_prompt=190), facts())
    assert row["stddev_ns"] is row["stddev_ts"] is None
    assert measured(row, "ts") == "190.00" and "±" not in written("md", [row])


def test_first_against_steady() -> None:
    windows = [{"t_s": float(t), "ts": 10.0 if t < 3 else 4.0 if t > 19 else 7.0} for t in range(30)]
    row = schema.sustained("sustained tg64", windows, facts())
    assert (row["sustained"]["first_ts"], row["sustained"]["steady_ts"]) == (10.0, 4.0)
    assert row["avg_ts"] == pytest.approx((30 + 17 * 7 + 40) / 30)


def test_every_field_has_its_place_and_the_peers_come_first() -> None:
    assert {name for row in ROWS for name in row} <= set(FIELDS)
    assert FIELDS[: len(PEER)] == PEER
    assert len(set(FIELDS)) == len(FIELDS)


def test_json_parses_back() -> None:
    assert json.loads(written("json", ROWS)) == ROWS
    assert list(json.loads(written("json", [{**ROWS[1], "host": "pi"}]))[0])[-1] == "host"  # added by others: kept


def test_json_lines_parse_back() -> None:
    assert [json.loads(line) for line in written("jsonl", ROWS).splitlines()] == ROWS


def test_csv_parses_back() -> None:
    found = list(csv.DictReader(io.StringIO(written("csv", ROWS))))
    assert tuple(found[0]) == FIELDS
    for back, row in zip(found, ROWS, strict=True):
        for name in FIELDS:
            expected = row.get(name)
            if isinstance(expected, list | dict):
                assert json.loads(back[name]) == expected
            else:
                assert back[name] == ("" if expected is None else str(expected))


def test_markdown_parses_back() -> None:
    head, rule, *lines = written("md", ROWS).splitlines()
    assert len({len(line) for line in (head, rule)}) == 1

    def cells(line: str) -> list[str]:
        return [c.replace("\\|", "|").strip() for c in line.replace("\\|", "\0").strip("|").split("|")]

    assert cells(head)[:6] == ["model", "size", "backend", "threads", "test", "t/s"]
    for line, row in zip(lines, ROWS, strict=True):
        found = dict(zip(cells(head), [c.replace("\0", "|") for c in cells(line)], strict=True))
        assert (found["model"], found["test"], found["threads"]) == (
            row["model_type"],
            row["test"],
            str(row["n_threads"]),
        )
        for column, unit, scale in (("t/s", "ts", 1.0), ("ms", "ns", 1e-6)):
            if f"avg_{unit}" not in row:
                assert found[column] == ""
                continue
            mean, _, deviation = found[column].partition(" ± ")
            assert float(mean) == pytest.approx(row[f"avg_{unit}"] * scale, rel=5e-3)
            assert float(deviation) == pytest.approx(row[f"stddev_{unit}"] * scale, abs=6e-3)
        assert found["MB"] == ("1370.0" if row["test"] == "peak memory" else "")
    assert cells(lines[0])[-1] == "94% 0.9988"


# kept


@pytest.mark.parametrize("output", ["json", "jsonl"])
def test_what_was_kept_is_read(tmp_path: Path, output: str) -> None:
    path = tmp_path / "kept"
    path.write_text(written(output, ROWS))
    assert results.read(path) == ROWS


def test_keeping_replaces_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.json"
    results.write(path, ROWS[:1])
    results.write(path, ROWS)
    assert results.read(path) == ROWS and os.listdir(tmp_path) == ["kept.json"]
    with pytest.raises(EdgeError, match="cannot write"):
        results.write(tmp_path / "none" / "kept.json", ROWS)


def test_a_peers_results_are_read(tmp_path: Path) -> None:
    row = {"build_commit": "b1", "build_number": 7, "model_type": "m Q4_0", "n_prompt": 0, "n_gen": 64, "n_depth": 188}
    row.update(avg_ns=2_000_000_000, stddev_ns=0, avg_ts=32.0, stddev_ts=0.0, samples_ns=[2_000_000_000])
    (tmp_path / "peer.json").write_text(json.dumps([row, {**row, "n_prompt": 190, "n_gen": 0, "n_depth": 0}]))
    assert [found["test"] for found in results.read(tmp_path / "peer.json")] == ["tg64 @ d188", "pp190"]


DAMAGE: dict[str, Callable[[str], str]] = {
    "holds no results": lambda text: "",
    "larger than": lambda text: text + " " * (1 << 24),
    "is not what edge bench wrote": lambda text: text[:-40],
    "row 1 of .* is no result": lambda text: "[3]",
    "row 1 of .* has schema 2; this edge-vlm reads up to 1": lambda text: text.replace('"schema": 1', '"schema": 2'),
    "row 1 of .* has schema None": lambda text: '[{"a": 1}]',
    "row 2 of .* is damaged": lambda text: text.replace('"avg_ns": ', '"avg_ns": -'),
    "row 1 of .* is damaged": lambda text: text.replace('"test": ', '"tost": '),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_what_is_damaged_or_newer_is_refused(tmp_path: Path, message: str) -> None:
    path = tmp_path / "kept.json"
    path.write_text(DAMAGE[message](written("json", ROWS)))
    with pytest.raises(EdgeError, match=message) as caught:
        results.read(path)
    assert caught.value.hint
    with pytest.raises(EdgeError, match="cannot read"):
        results.read(tmp_path)


WILD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["windows", "t_s", "ts"]), inner),
    max_leaves=6,
)


@given(st.sampled_from(range(len(ROWS))), st.sampled_from([*FIELDS, "windows"]), WILD)
def test_wild_results_are_refused_or_drawn(
    tmp_path_factory: pytest.TempPathFactory, number: int, field: str, wild: object
) -> None:
    """Whatever one field holds: it is refused in our words, or all that reads results can bear it."""
    row = dict(ROWS[number])
    if field == "windows":
        row["sustained"] = {"first_ts": 1.0, "steady_ts": 1.0, "windows": wild}
    else:
        row[field] = wild
    path = tmp_path_factory.getbasetemp() / "wild.json"
    path.write_text(json.dumps([row]))
    try:
        found = results.read(path)
    except EdgeError:
        return
    compare(found, found, 0.05)
    for output in WRITERS:
        written(output, found)


@pytest.mark.parametrize(
    "change",
    [
        {"avg_ns": 0},
        {"avg_ns": 1e300},
        {"avg_ns": float("nan")},
        {"stddev_ns": "1"},
        {"stages_ns": [1]},
        {"warnings": [1]},
        {"warnings": 1},
        {"device": 3},
        {"sustained": {"first_ts": 1.0, "steady_ts": 1.0, "windows": []}},
        {"sustained": {"first_ts": 0.0, "steady_ts": 1.0, "windows": [{"t_s": 1, "ts": 1}]}},
        {"sustained": {"first_ts": 1.0, "steady_ts": 1.0, "windows": [{"t_s": 1}]}},
        {"test": "tg64", "avg_ts": None},
        {"test": "peak memory"},
        {"agreement_cosine": "1"},
    ],
    ids=str,
)
def test_a_field_that_is_none_of_ours_is_refused(tmp_path: Path, change: Row) -> None:
    row = schema.timed(samples("load", 100), facts())
    results.write(tmp_path / "fine.json", [row, {**row, "agreement_cosine": -0.5}])
    assert len(results.read(tmp_path / "fine.json")) == 2
    results.write(tmp_path / "damaged.json", [{**row, **change}])
    with pytest.raises(EdgeError, match=r"row 1 of .* is damaged"):
        results.read(tmp_path / "damaged.json")


# compared


def test_what_became_slower() -> None:
    before = run()
    now = run(1.2)
    changes = {change.what.rpartition(": ")[2]: change for change in compare(now, before, 0.05)}
    assert {test for test, change in changes.items() if not change.failed} == {"peak memory"}
    assert changes["tg64"].worse == pytest.approx(1 - 1 / 1.2)
    assert changes["vision encode"].worse == pytest.approx(0.2)
    assert describe(changes["tg64"]) == "tiny w8a8+q4_0, onnxruntime,llamacpp, 4 threads: tg64: 16.7% SLOWER"
    assert not any(change.failed for change in compare(run(0.5), before, 0.05))
    assert not any(change.failed for change in compare(now, before, 0.25))


def test_what_is_not_a_number_is_no_improvement() -> None:
    before = [{**schema.timed(samples("tg64", 100, n_gen=64), facts()), "accuracy": 0.9}]
    assert not any(change.failed for change in compare(before, before, 0.05))
    assert compare(before, before, math.nan)[0].failed  # --max-slower nan allows nothing
    for name in ("avg_ts", "accuracy"):
        assert any(change.failed for change in compare([{**before[0], name: math.nan}], before, 0.05))


def test_more_memory_is_slower_too() -> None:
    before, now = schema.memory(100, facts()), schema.memory(120, facts())
    (change,) = compare([now], [before], 0.05)
    assert change.failed and describe(change).endswith("peak memory: 20.0% MORE")
    (change,) = compare([before], [now], 0.05)
    assert not change.failed and describe(change).endswith("less")


def test_what_the_deviations_explain_is_no_regression() -> None:
    before = schema.timed(samples("load", 80, 100, 120), facts())
    now = schema.timed(samples("load", 95, 115, 135), facts())
    (change,) = compare([now], [before], 0.05)
    assert change.worse == pytest.approx(0.15) and not change.failed  # two deviations of 20 %
    steady = schema.timed(samples("load", 100), facts())
    (change,) = compare([schema.timed(samples("load", 115), facts())], [steady], 0.05)
    assert change.failed


@pytest.mark.parametrize(
    ("right", "failed", "line"),
    [
        (0.985, False, "98.5% after 99.0% fewer"),
        (0.95, True, "95.0% after 99.0% FEWER"),
        (1.0, False, "100.0% after 99.0% no fewer"),
    ],
)
def test_right_answers_are_compared_too(right: float, failed: bool, line: str) -> None:
    row = schema.timed(samples("720 questions", 100), facts())
    before, now = ({**row, "accuracy": share} for share in (0.99, right))
    time, quality = compare([now], [before], 0.05)
    assert (time.failed, quality.failed) == (False, failed)
    assert describe(quality).endswith(f"720 questions, right answers: {line}")
    assert len(compare([now], [schema.timed(samples("720 questions", 100), facts())], 0.05)) == 1  # nobody asked then


def test_bundles_that_look_the_same_are_compared_in_order() -> None:
    first, second = (schema.timed(samples("load", ms), facts()) for ms in (100, 200))
    changes = compare([first, second], [first, second], 0.05)
    assert [change.worse for change in changes] == [0.0, 0.0]


def test_nothing_to_compare() -> None:
    with pytest.raises(EdgeError, match="nothing to compare"):
        compare(run(n_threads=1), run(n_threads=2), 0.05)
