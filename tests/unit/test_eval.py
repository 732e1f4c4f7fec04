"""`edge eval`: asks through a session, keeps answers, goes on after an interruption, compares two runs."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from commands import call
from conftest import REPOSITORY
from evaluation_files import ANSWERS, Answering, benchmarks, draw, write_answers
from fakes import write_model_bundle
from PIL import Image
from rich.console import Console

from edge.cli import render_evaluation
from edge.errors import ContextError, EngineError, ImageError
from edge.evaluation import answers_file, tasks
from edge.evaluation.answers_file import Line
from edge.evaluation.runner import Progress
from edge.inference import session as sessions

TASKS = tasks.names()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return benchmarks(tmp_path_factory.mktemp("benchmarks") / "data")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_bundle(tmp_path_factory.mktemp("bundles") / "bundle").path


@pytest.fixture
def answering(data: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Answering]:
    """`answering("pope")`: sessions answer that task's questions as `answers.json` does."""
    from edge.bundle.manifest import Bundle

    def made(name: str) -> Answering:
        questions = tasks.find(name).read(tasks.locate(name, data))
        fake = Answering(Bundle.open(bundle), questions, ANSWERS[name])
        monkeypatch.setattr("edge.inference.session.load", fake.load)
        return fake

    return made


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("edge.bundle.vouching.voucher", lambda folder, keys: "a test")


def value(found: Any, name: str, part: str = "") -> float:
    (metric,) = [m for m in found["metrics"] if (m["name"], m["part"]) == (name, part)]
    return float(metric["value"])


# asking


@pytest.mark.parametrize("name", TASKS)
def test_every_task_runs_from_its_files_to_its_figures(
    answering: Callable[[str], Answering], bundle: Path, data: Path, name: str
) -> None:
    session = answering(name)
    said = call("eval", bundle, "--task", name, "--data", data)
    assert (said.code, said.err) == (0, "")
    assert all(len(line) <= 80 for line in said.out.splitlines())
    assert said.out.startswith(tasks.find(name).TITLE)
    assert {most for _, _, most in session.asked} == {1024 if name in ("sqa", "mmbench") else 128}


def test_json_is_one_object(answering: Callable[[str], Answering], bundle: Path, data: Path) -> None:
    answering("pope")
    said = call("eval", bundle, "--task", "pope", "--data", data / "pope", "--json", "-t", 3)
    assert (said.code, said.err) == (0, "")
    assert value(said.json, "F1, mean of splits") == pytest.approx(46.66667)
    assert (said.json["asked"], said.json["run"]["questions"], said.json["run"]["engines"]) == (12, 12, "null")
    assert said.json["run"]["bundle"] == "null fp32+fp32"


def test_threads_reach_the_session(answering: Callable[[str], Answering], bundle: Path, data: Path) -> None:
    session = answering("gqa")
    call("eval", bundle, "--task", "gqa", "--data", data, "-t", 3, "--debug")
    assert session.options == {"threads": 3, "debug": True}


def test_what_stays_on_the_processor_is_told(answering: Callable[[str], Answering], bundle: Path, data: Path) -> None:
    answering("gqa").plan.notes = ("on the CPU: no kernels",)
    assert call("eval", bundle, "--task", "gqa", "--data", data).err == "on the CPU: no kernels\n"


def test_the_table(answering: Callable[[str], Answering], bundle: Path, data: Path) -> None:
    answering("gqa")
    lines = call("eval", bundle, "--task", "gqa", "--data", data).out.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["GQA", "9"], ["bundle", "null"]]
    assert [line.split() for line in lines[5:]] == [
        ["accuracy", "all", "55.56", "%", "26.7", "to", "81.1", "9"],
        ["accuracy", "binary", "60.00", "%", "23.1", "to", "88.2", "5"],
        ["accuracy", "open", "50.00", "%", "15.0", "to", "85.0", "4"],
    ]


def test_a_sample(answering: Callable[[str], Answering], bundle: Path, data: Path, tmp_path: Path) -> None:
    answering("mme")
    kept = tmp_path / "a.jsonl"
    said = call("eval", bundle, "--task", "mme", "--data", data, "--limit", 3, "-o", kept)
    assert "MME     4 of 56 questions" in said.out
    assert "perception" not in said.out
    more = call("eval", bundle, "--task", "mme", "--data", data, "--limit", 9, "-o", kept)
    assert "MME     10 of 56 questions" in more.out
    again = call("eval", bundle, "--task", "mme", "--data", data, "--limit", 3, "-o", kept)
    assert again.out == said.out


def test_a_real_session_is_asked(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The null engine's answers, as the session gives them by itself."""
    load = functools.partial(sessions.load, engine="null")
    monkeypatch.setattr(sessions, "load", load)
    draw(tmp_path / "cat.png")
    asked = ("Is it?", "Is it not?", "w" * 500)
    lines = [{"image": "cat.png", "question": question, "answer": "No."} for question in asked]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    said = call("eval", bundle, "--task", tmp_path, "-o", tmp_path / "a.jsonl")
    assert said.code == 0
    run, answers = answers_file.read(tmp_path / "a.jsonl")
    assert (run.task, run.title, run.engines, run.questions) == ("folder", tmp_path.name, "null", 3)
    with load(bundle) as session:
        for line, question in zip(answers, asked[:2], strict=False):
            text = session.ask(tmp_path / "cat.png", question, max_tokens=256)
            assert (line.text, line.stop) == (text.strip(), session.last.stop_reason)
            assert line.tokens == session.last.generated_tokens
    assert (answers[2].id, answers[2].image, answers[2].text, answers[2].stop) == ("3", "cat.png", "", "too long")


def test_answers_that_were_cut_off_are_counted(answering: Callable[[str], Answering], bundle: Path, data: Path) -> None:
    session = answering("gqa")
    session.last = replace(session.last, stop_reason="length")
    said = call("eval", bundle, "--task", "gqa", "--data", data)
    assert said.err == "answers that were cut off, at the most tokens or the end of the context: 9\n"


def test_a_prompt_that_does_not_fit_counts_as_wrong(
    answering: Callable[[str], Answering], bundle: Path, data: Path, tmp_path: Path
) -> None:
    session = answering("gqa")
    session.raises = {1: ContextError("the prompt needs 9999 positions")}
    said = call("eval", bundle, "--task", "gqa", "--data", data, "-o", tmp_path / "a.jsonl")
    assert said.code == 0
    assert said.err == "prompts that did not fit into the context, and count as wrong: 1\n"
    assert "accuracy  all     44.44 %" in said.out
    assert answers_file.read(tmp_path / "a.jsonl")[1][0].stop == "too long"


def test_no_answer_is_no_yes(answering: Callable[[str], Answering], bundle: Path, data: Path) -> None:
    """An empty answer reads as yes in POPE: here there is none."""
    session = answering("pope")
    session.raises = {1: ContextError("the prompt needs 9999 positions")}
    found = call("eval", bundle, "--task", "pope", "--data", data, "--json").json
    assert (value(found, "accuracy", "random"), value(found, "recall", "random")) == (25.0, 0.0)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ImageError("cat.jpg is cut off", hint="copy it"), "error: question 201307251: cat.jpg is cut off\nhint: copy"),
        (EngineError("the decoder gave the logit nan"), "error: the decoder gave the logit nan\n"),
    ],
)
def test_an_error_ends_the_run_and_keeps_what_was_answered(
    answering: Callable[[str], Answering], bundle: Path, data: Path, tmp_path: Path, error: Exception, told: str
) -> None:
    session = answering("gqa")
    session.raises = {1: error}
    said = call("eval", bundle, "--task", "gqa", "--data", data, "-o", tmp_path / "a.jsonl")
    assert said.code == 1
    assert said.err.startswith(told)
    assert call("eval", bundle, "--task", "gqa", "--data", data, "-o", tmp_path / "a.jsonl").code == 0


# going on


def test_an_interrupted_run_goes_on(
    answering: Callable[[str], Answering], bundle: Path, data: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "a.jsonl"
    arguments = ("eval", bundle, "--task", "textvqa", "--data", data, "-o", kept, "--json")
    whole = answering("textvqa")
    expected = call("eval", bundle, "--task", "textvqa", "--data", data, "--json").json
    session = answering("textvqa")
    session.raises = {6: KeyboardInterrupt()}
    said = call(*arguments)
    assert said.code == 130
    assert said.out == ""
    assert said.err == f"interrupted after 5 answers: {kept} holds them, and the same command goes on\n"
    kept.write_bytes(kept.read_bytes()[:-20])  # as a power cut would
    session.asked.clear()
    found = call(*arguments).json
    assert len(session.asked) == len(whole.asked) - 4
    assert found["metrics"] == expected["metrics"]
    session.asked.clear()
    assert call(*arguments).json == found
    assert session.asked == []


def test_an_interruption_without_a_file(answering: Callable[[str], Answering], bundle: Path, data: Path) -> None:
    answering("gqa").raises = {3: KeyboardInterrupt()}
    said = call("eval", bundle, "--task", "gqa", "--data", data)
    assert (said.code, said.err) == (130, "interrupted after 2 answers: -o FILE would have kept them\n")


def test_another_tasks_file_is_refused_before_a_question(
    answering: Callable[[str], Answering], bundle: Path, data: Path, tmp_path: Path
) -> None:
    answering("gqa")
    call("eval", bundle, "--task", "gqa", "--data", data, "-o", tmp_path / "a.jsonl")
    session = answering("pope")
    said = call("eval", bundle, "--task", "pope", "--data", data, "-o", tmp_path / "a.jsonl")
    assert said.code == 2
    assert "holds answers of another run: task gqa, and not pope" in said.err
    assert session.asked == []


# calls that are off


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("eval", "there is no BUNDLE"),
        ("eval BUNDLE", "there is no --task"),
        ("eval BUNDLE --task pop --data DATA", "no task 'pop', and no folder of this name\nhint: did you mean 'pope'?"),
        ("eval BUNDLE --task pope --data nowhere", "no folder 'nowhere'"),
        ("eval BUNDLE --task pope --data DATA/gqa", "holds files of GQA, and none of POPE"),
        ("eval BUNDLE --task DATA/gqa", "holds files of GQA\nhint: --task gqa --data "),
        ("eval BUNDLE --task DATA", "no prompts.jsonl in "),
        ("eval BUNDLE --task pope --margin 0.5", "--margin belongs to --compare"),
        ("eval BUNDLE --compare a.jsonl b.jsonl", "--compare takes two files of answers, and asks nothing"),
        ("eval --compare a.jsonl b.jsonl", "no file 'a.jsonl'"),
    ],
)
def test_a_call_that_is_off_exits_with_2(
    answering: Callable[[str], Answering], bundle: Path, data: Path, arguments: str, told: str
) -> None:
    session = answering("pope")
    said = call(*(word.replace("BUNDLE", str(bundle)).replace("DATA", str(data)) for word in arguments.split()))
    assert (said.code, said.out) == (2, "")
    assert told in said.err
    assert session.asked == []


def test_a_folder_of_ones_own_goes_by_its_name() -> None:
    from edge.cli.eval import _task

    name, task, questions = _task(str(REPOSITORY / "calib_data"), Path("."))
    assert (name, task.TITLE, len(questions)) == ("folder", "calib_data", 47)


# comparing


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    first = write_answers(tmp_path / "a.jsonl")
    second = write_answers(tmp_path / "b.jsonl", score=lambda n: float(n % 3 > 0 and n % 50 > 0), bundle="demo w4")
    said = call("eval", "--compare", first, second)
    assert (said.code, said.err) == (0, "")
    assert all(len(line) <= 80 for line in said.out.splitlines())
    heads = [line.partition("  ")[0] for line in said.out.splitlines()]
    assert [head for head in heads if head] == ["POPE", "A", "B", "B − A", "pairs", "McNemar"]
    found = call("eval", "--compare", first, second, "--json").json
    assert (found["better"], found["worse"], found["questions"]) == (0, 6, 500)
    assert found["difference"] == pytest.approx(-1.2)
    assert found["interval"][0] < -1.2 < found["interval"][1]
    assert (found["p"], found["exact"]) == (pytest.approx(2 / 2**6), True)
    assert found["means"] == pytest.approx([66.6, 65.4])
    assert (found["same_text"], found["images"]) == (494, 250)
    assert "verdict" not in found


@pytest.mark.parametrize(
    ("lost", "margin", "code", "told"),
    [
        (0, 1, 0, ""),
        (3, 2, 0, ""),
        (3, 0.5, 1, "is not shown to be no worse than "),
        (40, 0.5, 1, "is worse than "),
    ],
)
def test_no_worse_is_tested(tmp_path: Path, lost: int, margin: float, code: int, told: str) -> None:
    first = write_answers(tmp_path / "a.jsonl", image=str)
    second = write_answers(tmp_path / "b.jsonl", image=str, score=lambda n: float(n % 3 > 0 and n >= lost * 1.5))
    said = call("eval", "--compare", first, second, "--margin", margin)
    assert said.code == code
    assert told in said.err
    assert f"{margin} points" in said.out
    verdict = call("eval", "--compare", first, second, "--margin", margin, "--json").json["verdict"]
    assert verdict == {"": "no worse", "is not shown to be no worse than ": "open", "is worse than ": "worse"}[told]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"count": 480}, "480 questions are answered in both, 20 in the first alone, 0 in the second alone"),
        ({"task": "gqa"}, "do not pair: task pope (500 answers), and gqa (500 answers)"),
        ({"questions_sha256": "r" * 64}, f"do not pair: questions {'q' * 64} (500 answers), and {'r' * 64}"),
    ],
)
def test_files_that_do_not_pair_are_refused_with_counts(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    first, second = write_answers(tmp_path / "a.jsonl"), write_answers(tmp_path / "b.jsonl", **changes)
    said = call("eval", "--compare", first, second)
    assert said.code == 2
    assert told in said.err


def test_empty_files_do_not_pair(tmp_path: Path) -> None:
    first, second = (write_answers(tmp_path / name, 0) for name in ("a.jsonl", "b.jsonl"))
    assert "0 questions are answered in both" in call("eval", "--compare", first, second).err


def test_a_group_that_is_answered_in_part_does_not_pair(tmp_path: Path) -> None:
    paths = [write_answers(tmp_path / name, 0, whole_groups=True) for name in ("a.jsonl", "b.jsonl")]
    for path, rotations in zip(paths, (4, 3), strict=True):
        for n in range(rotations):
            answers_file.AnswersFile(path).append(Line(f"{n}", "cat.jpg", "group", "A", 1.0, "stop", 1, 0.1))
    said = call("eval", "--compare", *paths)
    assert said.code == 2
    assert "3 questions are answered in both, 1 in the first alone, 0 in the second alone" in said.err


def test_a_group_counts_as_one_question(tmp_path: Path) -> None:
    """Right only where all of it are."""
    paths = []
    for name, scores in (("a.jsonl", (1, 1, 1, 0)), ("b.jsonl", (1, 0, 1, 1))):
        path = write_answers(tmp_path / name, 0, whole_groups=True)
        for n, score in enumerate(scores):
            line = Line(f"{n}", "cat.jpg", f"group {n // 2}", "A", float(score), "stop", 1, 0.1)
            answers_file.AnswersFile(path).append(line)
        paths.append(path)
    found = call("eval", "--compare", *paths, "--json").json
    assert found["means"] == [50.0, 50.0]
    assert (found["questions"], found["better"], found["worse"]) == (2, 1, 1)


# progress


def test_a_bar_with_the_score_and_the_time_left() -> None:
    console = Console(force_terminal=True, width=80, color_system=None)
    with console.capture() as shown, render_evaluation.Answers(console) as bar:
        bar.report(Progress(3, 10, 0.5, 4000.0))
    assert "3/10" in shown.get() and "score 50.0 %, 1 h 7 min left" in shown.get()
    assert bar.done == 3


def test_a_line_a_minute_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("edge.cli.render_evaluation.time.monotonic", lambda: now[0])
    console = Console(force_terminal=False, width=40)
    with console.capture() as shown, render_evaluation.Answers(console) as bar:
        for n in range(1, 7):
            now[0] += 25
            bar.report(Progress(n, 6, 1.0, 25.0 * (6 - n)))
    assert shown.get() == "3/6: score 100.0 %, 1 min left\n6/6: score 100.0 %, 0 s left\n"


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min"), (7300, "2 h 2 min")])
def test_a_duration(seconds: float, shown: str) -> None:
    assert render_evaluation.duration(seconds) == shown


# what the page shows


def test_the_model_for_another_harness(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests as lmms-eval 0.7.3 makes them for its simple interface; its own classes are stand-ins."""
    page = (REPOSITORY / "docs" / "eval.md").read_text(encoding="utf-8")
    (code,) = [block.partition("```")[0] for block in page.split("```python")[1:]]
    for module in ("lmms_eval", "lmms_eval.api"):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    model = ModuleType("lmms_eval.api.model")
    model.lmms = type("lmms", (), {"task_dict": {}})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lmms_eval.api.model", model)
    load = functools.partial(sessions.load, engine="null")
    monkeypatch.setattr(sessions, "load", load)
    found: dict[str, Any] = {}
    exec(code, found)
    draw(tmp_path / "cat.png")
    edge = found["Edge"](bundle)
    edge.task_dict = {"held": {"test": [tmp_path / "cat.png"]}}
    options = {"max_new_tokens": 9, "until": ["ASSISTANT:"]}
    request = SimpleNamespace(args=("Is it?", options, lambda doc: [Image.open(doc)], 0, "held", "test"))
    with load(bundle) as session:
        expected = session.ask(tmp_path / "cat.png", "Is it?", max_tokens=9).strip()
    assert edge.generate_until([request]) == [expected]
    options["until"] = [expected[3]]
    assert edge.generate_until([request]) == [expected.partition(expected[3])[0].strip()]
