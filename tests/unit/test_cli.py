from __future__ import annotations

import builtins
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from bench_fakes import run as bench_rows
from conftest import REPOSITORY, write_bundle
from evaluation_files import benchmarks, write_answers
from gguf_fakes import gguf_bytes, pair_decoder, pair_mmproj
from rich.console import Console

from edge import cli, plugins
from edge.bench import results
from edge.bench.request import Request
from edge.bundle.manifest import Bundle, Manifest
from edge.cli import render
from edge.cli.run import split
from edge.errors import ContextError, EngineError, ImageError, UsageError
from edge.inference.constraint import Constraint
from edge.inference.generate import Answer, Timings
from edge.inference.sampling import Sampling
from edge.verify import Report, Row
from exporters.gguf.template import jinja
from exporters.sources.published import prompt

Capture = pytest.CaptureFixture[str]
ANSWER = Answer(
    text="A red star.",
    token_ids=(5, 6, 7),
    stop_reason="stop",
    prompt_tokens=190,
    image_tokens=144,
    cached_tokens=0,
    generated_tokens=3,
    timings=Timings(100.0, 5.0, 50.0, 200.0, 260.0, 40.0, 50.0),
)
REPORT = Report(
    (
        Row("vision", "stored", {"max_abs": 0.00123, "cosine": 0.9999999}, {"max_abs": 0.01, "cosine": 0.999}),
        Row("vision", "fp32", {"max_abs": 0.5, "cosine": 0.98}, {}),
        Row("tokens", "stored", {"tokens": 1.0}, {"tokens": 1.0}),
    )
)


class FakeSession:
    """Says its pieces, and remembers what it was asked."""

    def __init__(self) -> None:
        self.pieces: list[str | BaseException] = ["A red", " star", "."]
        self.calls: list[tuple[Any, ...]] = []
        self.opened: list[dict[str, Any]] = []
        self.before_piece: Callable[[int], None] = lambda number: None
        self.last = ANSWER
        self.plan = SimpleNamespace(
            to_json=lambda: {"parts": [], "threads": 2, "context": 64},
            given_up=(),
            free=(),
            notes=(),
            engines=("null",),
        )
        self.closed = False

    @property
    def bundle(self) -> Bundle:
        return Bundle.open(self.opened[-1]["path"])

    def load(self, path: Path, **options: Any) -> FakeSession:
        self.opened.append({"path": path, **options})
        return self

    def stream(self, image: Any, question: str, **options: Any) -> Iterator[str]:
        self.calls.append(("stream", image, question, options))
        for number, piece in enumerate(self.pieces):
            self.before_piece(number)
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def ask(self, image: Any, question: str, **options: Any) -> str:
        return "".join(self.stream(image, question, **options))

    def warm(self) -> None:
        self.calls.append(("warm",))

    def chat(self, image: Any = None, *, system: str | None = None) -> Any:
        self.calls.append(("chat", image, system))
        return self._chat(system)

    def resume(self, path: str, image: Any = None) -> Any:
        self.calls.append(("resume", path, image))
        return self._chat("As it was.")

    def _chat(self, system: str | None) -> Any:
        turns: list[str] = []

        def stream(question: str, **options: Any) -> Iterator[str]:
            yield from self.stream("same", question, **options)
            turns.append(question)

        def save(path: str) -> None:
            Path(path).write_text(" ".join(turns))

        def ask(question: str, **options: Any) -> str:
            return "".join(stream(question, **options))

        return SimpleNamespace(stream=stream, ask=ask, turns=turns, system=system, save=save)

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("edge.bundle.vouching.voucher", lambda folder, keys: "a test")


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    fake = FakeSession()
    monkeypatch.setattr("edge.inference.session.load", fake.load)
    monkeypatch.setattr("edge.isolation.session.load", lambda path, told, **options: fake.load(path, **options))
    return fake


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "cat.jpg"
    path.write_bytes(b"a picture")
    return str(path)


def call(*arguments: object) -> int:
    """The exit code of `edge ARGUMENTS`."""
    try:
        return cli.main([str(a) for a in arguments])
    except SystemExit as left:
        return int(left.code or 0)


def fits(text: str) -> bool:
    return all(len(line) <= 80 for line in text.splitlines())


# pictures and question


@pytest.mark.parametrize(
    ("inputs", "pictures", "question"),
    [
        ([], [], None),
        ([""], [], None),
        (["How are you?"], [], "How are you?"),
        (["cat.jpg"], ["cat.jpg"], None),
        (["CAT.PNG"], ["CAT.PNG"], None),
        (["plain"], ["plain"], None),
        (["cat.jpg", "What is this?"], ["cat.jpg"], "What is this?"),
        (["cat.jpg", "plain"], ["cat.jpg"], "plain"),
        (["plain", "CAT.PNG", "Which?"], ["plain", "CAT.PNG"], "Which?"),
        (["cat.jpg", "CAT.PNG"], ["cat.jpg", "CAT.PNG"], None),
        (["What is in cat.jpg?"], [], "What is in cat.jpg?"),
        (["why " * 2000], [], "why " * 2000),
        (["nul \0 byte"], [], "nul \0 byte"),
    ],
)
def test_pictures_and_question_are_told_apart(
    inputs: list[str], pictures: list[str], question: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cat.jpg", "CAT.PNG", "plain"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert split(inputs) == (pictures, question)


@pytest.mark.parametrize("inputs", [["no.jpg"], ["no.jpg", "What?"], ["nothing", "What?"], ["What is in no.png"]])
def test_a_picture_that_is_not_there_is_named(
    inputs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError) as caught:
        split(inputs)
    assert caught.value.message == f"no such picture: {inputs[0]!r}"


# run


def test_an_answer_appears_piece_by_piece(session: FakeSession, picture: str, capsys: Capture) -> None:
    seen: list[str] = []
    session.before_piece = lambda number: seen.append(capsys.readouterr().out)
    assert call("run", "bundle", picture, "What is this?") == 0
    assert seen == ["", "A red", " star"]
    rest = capsys.readouterr()
    assert rest.out == ".\n"
    assert rest.err == "190 tokens in · first word after 0.26 s · 3 tokens out, 50.0/s\n"
    assert session.closed


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({"stop_reason": "length"}, " · cut off: -n gives more\n"),
        ({"stop_reason": "context"}, " · the context is full\n"),
        ({"cached_tokens": 180}, "190 tokens in, 180 remembered · first word"),
        ({"timings": replace(ANSWER.timings, decode_tok_s=0.0)}, " · 3 tokens out\n"),
    ],
)
def test_the_line_below_an_answer(
    session: FakeSession, picture: str, capsys: Capture, changes: dict[str, Any], end: str
) -> None:
    session.last = replace(ANSWER, **changes)
    assert call("run", "bundle", picture, "What?") == 0
    assert end in capsys.readouterr().err


def test_options_reach_the_session(session: FakeSession, picture: str) -> None:
    given = (
        "-n 9 --temp 0.5 --top-k 40 --top-p 0.9 --repeat-penalty 1.1 --seed 3 -t 2 --cache q8_0 --isa neon "
        "--provider cuda,cpu --gpu-layers 12 --system Short. --image-tokens 640 --debug"
    )
    assert call("run", "bundle", *given.split(), picture, picture, "Which?") == 0
    opened = {"path": Path("bundle"), "threads": 2, "cache": "q8_0", "isa": "neon", "max_memory": None}
    card = {"provider": "cuda,cpu", "gpu_layers": 12}
    assert session.opened == [{**opened, **card, "image_tokens": 640, "image": picture, "debug": True}]
    sampling = Sampling(temperature=0.5, top_k=40, top_p=0.9, repeat_penalty=1.1, seed=3)
    options = {"max_tokens": 9, "system": "Short.", "sampling": sampling, "schema": None}
    assert session.calls == [("stream", [picture, picture], "Which?", options)]


def test_a_schema_reaches_the_session(session: FakeSession, picture: str, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text('{\n  "type": "object"\n}\n')
    assert call("run", "bundle", picture, "Which?", "--schema", str(path)) == 0
    assert session.calls[0][3]["schema"] == Constraint.json({"type": "object"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the schema SCHEMA: No such file"),
        (b"{", "SCHEMA is no JSON schema: "),
        (b"\xff", "SCHEMA is no JSON schema: "),
        (b"[" * 100_000, "SCHEMA is no JSON schema: "),
        (b"[]", "the schema is a list"),
        (b'"' + b"x" * 200_000 + b'"', "SCHEMA is no JSON schema: "),
    ],
)
def test_a_file_that_holds_no_schema(
    session: FakeSession, picture: str, tmp_path: Path, capsys: Capture, content: bytes | None, message: str
) -> None:
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_bytes(content)
    assert call("run", "bundle", picture, "Which?", "--schema", str(path)) == 2
    assert capsys.readouterr().err.startswith("error: " + message.replace("SCHEMA", str(path)))
    assert not session.opened, "before anything is loaded"


def test_a_question_without_a_picture(session: FakeSession) -> None:
    assert call("run", "bundle", "How are you?") == 0
    assert session.calls[0][1:3] == (None, "How are you?")


def test_json_is_one_object_and_nothing_else(session: FakeSession, picture: str, capsys: Capture) -> None:
    assert call("run", "bundle", picture, "What?", "--json") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    found = json.loads(shown.out)
    assert found["peak_rss_mb"] > 1
    assert {k: v for k, v in found.items() if k != "peak_rss_mb"} == {
        "text": "A red star.",
        "token_ids": [5, 6, 7],
        "stop_reason": "stop",
        "prompt_tokens": 190,
        "image_tokens": 144,
        "cached_tokens": 0,
        "generated_tokens": 3,
        "timings": {
            "load_ms": 100.0,
            "image_ms": 5.0,
            "vision_ms": 50.0,
            "prefill_ms": 200.0,
            "ttft_ms": 260.0,
            "decode_ms": 40.0,
            "decode_tok_s": 50.0,
        },
        "plan": {"parts": [], "threads": 2, "context": 64},
    }


def test_json_without_a_question_is_refused_before_loading(session: FakeSession, picture: str, capsys: Capture) -> None:
    assert call("run", "bundle", picture, "--json") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: --json answers one question, and there is none\nhint: ")
    assert session.opened == []


def test_ctrl_c_ends_an_answer_cleanly(session: FakeSession, picture: str, capsys: Capture) -> None:
    session.pieces = ["A red", KeyboardInterrupt()]
    assert call("run", "bundle", picture, "What?") == 130
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("A red\n", "")
    assert session.closed


def test_what_fails_before_the_first_word_says_nothing_on_stdout(
    session: FakeSession, picture: str, capsys: Capture
) -> None:
    session.pieces = [EngineError("no kernel")]
    assert call("run", "bundle", picture, "What?") == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "error: no kernel\n")


# chat


def test_chat_reads_lines_when_nobody_types(
    session: FakeSession, picture: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is this?\n\n  And that? \nlast line"))
    assert call("run", "bundle", picture, "--system", "Short.", "-n", "4") == 0
    shown = capsys.readouterr()
    assert shown.out == "A red star.\n" * 3
    assert shown.err == ""
    assert session.calls[0] == ("chat", [picture], "Short.")
    assert [c[1:3] for c in session.calls[1:]] == [("same", q) for q in ("What is this?", "And that?", "last line")]
    assert session.calls[1][3] == {"max_tokens": 4, "sampling": Sampling(), "schema": None}


def test_a_conversation_is_begun_in_a_file_and_gone_on_with(
    session: FakeSession, picture: str, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "talk"
    assert call("run", "bundle", picture, "What?", "--session", str(path), "--system", "Short.") == 0
    assert session.calls[0] == ("chat", [picture], "Short.")
    assert path.read_text() == "What?"
    assert call("run", "bundle", "Why?", "--session", str(path), "--json") == 0
    assert session.calls[2] == ("resume", str(path), None)
    assert path.read_text() == "Why?"
    assert call("run", "bundle", picture, "And this?", "--session", str(path), "--system", "As it was.") == 0
    assert session.calls[4] == ("resume", str(path), [picture])
    assert f'"text": "{ANSWER.text}"' in capsys.readouterr().out
    assert call("run", "bundle", "Why?", "--session", str(path), "--system", "Long.") == 2
    assert "leave --system out" in capsys.readouterr().err
    assert path.read_text() == "And this?"


@pytest.mark.parametrize("end", [EngineError("no kernel"), KeyboardInterrupt()])
def test_what_was_said_before_an_end_is_saved(
    session: FakeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    path = tmp_path / "talk"

    def second(number: int) -> None:
        if len(session.calls) == 3:
            raise end

    session.before_piece = second
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is this?\nAnd that?\n"))
    assert call("run", "bundle", "--session", str(path)) != 0
    assert path.read_text() == "What is this?"


def test_a_conversation_of_no_answers_is_not_saved(session: FakeSession, tmp_path: Path) -> None:
    session.pieces = [EngineError("no kernel")]
    assert call("run", "bundle", "What?", "--session", str(tmp_path / "talk")) == 1
    assert not (tmp_path / "talk").exists()


def test_chat_asks_who_types(session: FakeSession, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[str] = []
    lines = iter(["Hello?"])

    def typed(prompt: str) -> str:
        prompts.append(prompt)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(builtins, "input", typed)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert call("run", "bundle") == 0
    assert prompts == ["", ""]  # stdout is not a terminal: only the answer goes there
    assert capsys.readouterr() == ("A red star.\n", "Ask; Ctrl-D ends.\n")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lines = iter(["Hello?"])
    assert call("run", "bundle") == 0
    assert prompts[2:] == ["> ", "> "]


def test_chat_goes_on_after_a_question_that_does_not_fit(
    session: FakeSession, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once(number: int) -> None:
        session.before_piece = lambda number: None
        raise ContextError("the prompt needs 99 positions", hint="ask something shorter")

    session.before_piece = once
    monkeypatch.setattr(sys, "stdin", io.StringIO("long\nshort\n"))
    assert call("run", "bundle") == 0
    shown = capsys.readouterr()
    assert shown.out == "A red star.\n"
    assert shown.err == "error: the prompt needs 99 positions\nhint: ask something shorter\n"


# errors


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (EngineError("no engine", hint="pip install it"), 1, "error: no engine\nhint: pip install it\n"),
        (EngineError("no engine"), 1, "error: no engine\n"),
        (UsageError("bad", hint="good"), 2, "error: bad\nhint: good\n"),
        (ZeroDivisionError("by 0"), 1, "error: ZeroDivisionError: by 0\nhint: "),
    ],
)
def test_an_error_is_two_lines_and_a_code(
    session: FakeSession, capsys: Capture, error: Exception, code: int, text: str
) -> None:
    session.pieces = [error]
    assert call("run", "bundle", "Hello?", "--json") == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(text)
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("error", [EngineError("no engine"), ZeroDivisionError("by 0")])
def test_debug_shows_the_traceback(session: FakeSession, capsys: Capture, error: Exception) -> None:
    session.pieces = [error]
    assert call("run", "bundle", "Hello?", "--debug") == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", ["run", "walk", "inspect b --fast", "run b -n 0", "run b -t -1", "export c", "bench b -r 0"]
)
def test_a_call_that_is_off_exits_with_2(arguments: str, capsys: Capture) -> None:
    assert call(*arguments.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Usage: edge" in shown.err


def test_a_sampling_value_that_is_off_exits_with_2(session: FakeSession, capsys: Capture) -> None:
    assert call("run", "bundle", "Hello?", "--top-p", "3") == 2
    assert session.opened == []
    assert "top-p is 3.0" in capsys.readouterr().err


def test_the_commands_are_the_ones_of_the_design(capsys: Capture) -> None:
    assert call("--help") == 0
    shown = capsys.readouterr().out
    names = [line.split()[1] for line in shown.partition("Commands")[2].splitlines()[1:] if line[2:3].isalpha()]
    assert " ".join(names) == "export run serve verify bench tune guard eval report inspect devices fit package doctor"
    assert [c.name or c.callback.__name__ for c in cli.app().registered_commands if c.callback] == names


def test_only_the_command_that_is_asked_for_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    """The others take longer to make than to run; its name and its mistakes are told as among all."""
    assert [command.name for command in cli.app("devices").registered_commands] == ["devices"]
    assert len(cli.app("no such").registered_commands) == len(cli.app().registered_commands) > 10
    with pytest.raises(SystemExit) as ended:
        cli.main(["devices", "--no-such-option"])
    assert ended.value.code == 2
    assert "Usage: edge devices" in capsys.readouterr().err


# export


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An export side that writes nothing; `requests` holds what it was asked for."""
    fake = SimpleNamespace(requests=[], error=None, notes=(), ExportRequest=lambda **asked: SimpleNamespace(**asked))
    fake.costs = {"vision": {"loss": 1e-4, "samples": 3, "widened": {}}}

    def verify_against(
        bundle: Bundle, checkpoint: str, mmproj: Path | None, threads: int, isa: str | None, base: str | None
    ) -> Report:
        fake.requests.append((bundle.path, checkpoint, mmproj, threads, isa, base))
        return REPORT

    def export(request: Any, progress: Callable[[str, float], None]) -> Any:
        fake.requests.append(vars(request))
        progress("read", 0.0)
        progress("read", 1.0)
        progress("write vision", 0.5)
        if fake.error:
            raise fake.error
        return SimpleNamespace(
            path=request.output,
            bytes=12_345_678,
            seconds=61.26,
            report=REPORT,
            next_command="edge run out PICTURE",
            fit=None,
            prompt="the chat template in chat_template.jinja",
            costs={role: SimpleNamespace(to_json=lambda found=found: found) for role, found in fake.costs.items()},
            notes=fake.notes,
        )

    def foresee(checkpoint: str, recipe: str, format: str | None, schemes: tuple[str, ...], **places: Any) -> Manifest:
        fake.requests.append((checkpoint, recipe, format, schemes, places))
        return Bundle.open("OUT").manifest

    fake.export, fake.verify_against, fake.foresee = export, verify_against, foresee
    fake.write = lambda *given: None
    load = plugins.load
    monkeypatch.setattr(plugins, "load", lambda package, name: fake if package == "exporters" else load(package, name))
    return fake


def test_export_hands_its_options_on(exporter: SimpleNamespace) -> None:
    given = "--format onnx --scheme w4 --scheme vision=fp16 --recipe r --device rpi5 --calib pics --imatrix m.gguf"
    more = "--context 512 --image-tokens 640 --vision-tower tower --mmproj m --gguf-only --threads 3 --max-loss 0.1"
    more += " --mtmd-position-workaround --tensor-type attn_v=Q8_0 --tensor-type blk=q6_k --ane --compile -o out"
    more += " --target-size 1.5GB --max-ram 2GiB --explain --split --backend coreml --backend vulkan --prompt vicuna"
    more += " --quantize gptq --base owner/base"
    assert call("export", "mtgv/some-model", *given.split(), *more.split()) == 0
    assert exporter.requests == [
        {
            "checkpoint": "mtgv/some-model",
            "output": Path("out"),
            "format": "onnx",
            "schemes": ("w4", "vision=fp16"),
            "recipe": "r",
            "device": "rpi5",
            "calib": Path("pics"),
            "imatrix": Path("m.gguf"),
            "context": 512,
            "image_tokens": 640,
            "vision_tower": Path("tower"),
            "mmproj": Path("m"),
            "vision": None,
            "base": "owner/base",
            "threads": 3,
            "options": {
                "gguf": {
                    "gguf_only": True,
                    "mtmd_position_workaround": True,
                    "tensor_type": ("attn_v=Q8_0", "blk=q6_k"),
                },
                "coreml": {"ane": True, "compile": True},
                "executorch": {"split": True, "backend": ("coreml", "vulkan")},
            },
            "max_loss": 0.1,
            "explain": True,
            "target_size": 1_500_000_000,
            "max_ram": 2 * 2**30,
            "prompt": "vicuna",
            "quantize": "gptq",
        }
    ]


def test_export_leaves_open_what_was_not_said(exporter: SimpleNamespace) -> None:
    assert call("export", "ckpt", "-o", "out") == 0
    asked = exporter.requests[0]
    assert (asked.pop("checkpoint"), asked.pop("output"), asked.pop("threads")) == ("ckpt", Path("out"), 0)
    assert {value for options in asked.pop("options").values() for value in options.values()} == {False, ()}
    assert asked.pop("explain") is False
    assert set(asked.values()) == {None, ()}


def test_the_options_of_a_format_are_those_of_the_command(exporter: SimpleNamespace) -> None:
    """Each by its own name and with its own default; the command's help is the format's."""
    assert call("export", "ckpt", "-o", "out") == 0
    formats = "exporters.formats"
    declared = {name: plugins.facts(formats, name)["OPTIONS"] for name in plugins.names(formats)}
    defaults = {
        name: {option: facts["default"] for option, facts in options.items()}
        for name, options in declared.items()
        if options
    }
    assert exporter.requests[0]["options"] == defaults
    shown = {param.name: param.help for param in typer.main.get_command(cli.app()).commands["export"].params}
    for options in declared.values():
        for option, facts in options.items():
            assert shown[option] == facts["help"]


def test_export_ends_with_the_proof_and_what_to_type_next(exporter: SimpleNamespace, capsys: Capture) -> None:
    assert call("export", "ckpt", "-o", "out") == 0
    shown = capsys.readouterr()
    assert fits(shown.out)
    assert shown.out.splitlines()[2].split()[:2] == ["vision", "stored"]
    assert shown.out.splitlines()[-4:] == [
        "out: 12.3 MB in 61.3 s",
        "worst: largest error 0.0012 ≤ 0.01 in vision; 0.5 from fp32",
        "prompt: the chat template in chat_template.jinja",
        "next: edge run out PICTURE",
    ]
    assert "read" in shown.err
    assert "write vision" in shown.err


def test_export_notes_what_could_not_be_seen(exporter: SimpleNamespace, capsys: Capture) -> None:
    exporter.notes = ("the table has no row for '[PAD]'", "whose prompt?")
    assert call("export", "ckpt", "-o", "out") == 0
    shown = capsys.readouterr()
    assert [line for line in shown.err.splitlines() if line.startswith("note: ")] == [
        "note: the table has no row for '[PAD]'",
        "note: whose prompt?",
    ]
    assert "note" not in shown.out
    assert call("export", "ckpt", "-o", "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["notes"] == list(exporter.notes)


def test_export_names_the_layers_that_outliers_made_wider(exporter: SimpleNamespace, capsys: Capture) -> None:
    names = [f"tower.layers.{index}.mlp.fc2" for index in range(5)]
    errors = {name: {"outliers": 31.44, "errors": {"w8a8": 0.01234, "fp16": 1e-9}} for name in names}
    found = {"loss": 1e-4, "samples": 3, "widened": {f"{names[1]}.weight": "fp16"}, "linears": errors}
    exporter.costs = {"vision": found, "decoder": {"loss": 1e-3, "samples": 3, "widened": {}}}
    assert call("export", "ckpt", "-o", "out") == 0
    told = f"stored wider: 1 layers of the vision: {names[1]} (fp16)"
    out = capsys.readouterr().out
    assert told in out.splitlines()
    assert names[0] not in out
    assert call("export", "ckpt", "-o", "out", "--explain") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [names[0], "31.4", "1.2e-02"] in rows
    assert [names[1], "31.4", "1.2e-02", "fp16"] in rows
    found["widened"] = {f"{name}.weight": "fp16" for name in names}
    assert call("export", "ckpt", "-o", "out") == 0
    assert f"{names[2]} (fp16), and 2 more (--explain)" in capsys.readouterr().out
    assert call("export", "ckpt", "-o", "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["costs"] == exporter.costs


def test_export_as_json(exporter: SimpleNamespace, capsys: Capture) -> None:
    assert call("export", "ckpt", "-o", "out", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == json.loads(json.dumps(REPORT.to_json()))
    assert (found["path"], found["bytes"], found["seconds"]) == ("out", 12_345_678, 61.26)
    assert found["next_command"] == "edge run out PICTURE"


@pytest.mark.parametrize("command", [("export", "ckpt", "-o", "out"), ("verify", "{bundle}", "--against", "ckpt")])
def test_a_missing_library_of_the_export_side_says_what_to_install(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def load(package: str, name: str) -> Any:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(plugins, "load", load)
    bundle = write_bundle(tmp_path / "bundle").path
    assert call(*(part.format(bundle=bundle) for part in command)) == 1
    shown = capsys.readouterr().err
    assert "error: exporting needs more than is installed: No module named 'torch'\n" in shown
    assert "pip install 'edge-vlm[export]'" in shown


def test_a_missing_module_of_our_own_is_a_bug(exporter: SimpleNamespace, capsys: Capture) -> None:
    exporter.error = ModuleNotFoundError("No module named 'exporters.gone'", name="exporters.gone")
    assert call("export", "ckpt", "-o", "out") == 1
    assert "this is a bug" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_kill_leaves_as_an_exit_does(exporter: SimpleNamespace, number: signal.Signals) -> None:
    """So that whatever is written beside the destination is removed on the way out."""
    left = []

    def killed(request: Any, progress: Any) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            left.append("tidily")

    exporter.export = killed
    before = signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored
    try:
        assert call("export", "ckpt", "-o", "out") == 128 + number
        assert left == ["tidily"]
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_what_nohup_ignores_stays_ignored(exporter: SimpleNamespace) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        export = exporter.export
        exporter.export = lambda *given: (os.kill(os.getpid(), signal.SIGHUP), export(*given))[1]
        assert call("export", "ckpt", "-o", "out") == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# verify, inspect, devices, doctor


def test_verify_shows_what_was_measured_and_what_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("edge.verify.verify", lambda bundle, **options: REPORT)
    path = write_bundle(tmp_path / "bundle").path
    assert call("verify", path) == 0
    shown = capsys.readouterr()
    assert fits(shown.out)
    assert [line.split() for line in shown.out.splitlines()[2:]] == [
        ["vision", "stored", "0.0012", "≤", "0.01", "0.999999", "≥", "0.999", "ok"],
        ["vision", "fp32", "0.5", "0.98", "cost"],
        ["tokens", "stored", "1", "≥", "1", "ok"],
    ]
    assert shown.err == f"{path} computes the same model\n"


@pytest.mark.parametrize("option", ["--base", "--mmproj"])
def test_verify_refuses_what_only_a_checkpoint_has(option: str, tmp_path: Path, capsys: Capture) -> None:
    path = str(write_bundle(tmp_path / "tiny").path)
    assert call("verify", path, option, str(tmp_path)) == 2
    assert "hint: --against CKPT" in capsys.readouterr().err


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_verify_fails_when_a_stage_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, options: tuple[str, ...]
) -> None:
    bad = Row("prefill", "stored", {"max_abs": float("nan"), "cosine": float("nan")}, {"max_abs": 0.01})
    monkeypatch.setattr("edge.verify.verify", lambda bundle, **options: Report((*REPORT.rows, bad)))
    path = write_bundle(tmp_path / "bundle").path
    assert call("verify", path, *options) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {path} does not compute the same model: prefill\nhint: export ")
    if options:
        assert json.loads(shown.out)["ok"] is False
    else:
        assert shown.out.splitlines()[-1].split() == ["prefill", "stored", "nan", "≤", "0.01", "nan", "FAILED"]


def test_the_worst_is_what_is_not_a_number() -> None:
    """Wherever it stands: NaN loses every comparison."""
    nan, bound = float("nan"), {"max_abs": 0.01}
    rows = (
        Row("vision", "stored", {"max_abs": 0.005}, bound),
        Row("prefill", "stored", {"max_abs": nan}, bound),
        Row("vision", "fp32", {"max_abs": 0.5}, {}),
        Row("prefill", "fp32", {"max_abs": nan}, {}),
    )
    for order in permutations(rows):
        assert render.worst(Report(order)) == "largest error nan ≤ 0.01 in prefill; nan from fp32"
        console = Console(width=80, file=io.StringIO())
        console.print(render.parity(Report(order)))
        assert console.file.getvalue().count("FAILED") == 2


def test_verify_against_a_checkpoint_asks_the_export_side(
    tmp_path: Path, exporter: SimpleNamespace, capsys: Capture
) -> None:
    path = write_bundle(tmp_path / "bundle").path
    assert (
        call("verify", path, "--against", "ckpt", "--mmproj", "m", "-t", "2", "--isa", "neon", "--base", "b", "--json")
        == 0
    )
    assert exporter.requests == [(path, "ckpt", Path("m"), 2, "neon", "b")]
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_inspect_tells_what_a_bundle_is(tmp_path: Path, capsys: Capture) -> None:
    path = write_bundle(tmp_path / "bundle", name="[red]not markup[/blue] :star:").path
    assert call("inspect", path) == 0
    shown = capsys.readouterr().out
    assert fits(shown)
    words = " ".join(shown.split())
    for fact in (
        "[red]not markup[/blue] :star:",
        "a checkpoint, sha256 000000000000…",
        "licence apache-2.0",
        "28×28, padded with RGB 122 116 104, bicubic; 4 rows",
        "A chat. USER: <image>\\n{question} ASSISTANT:",
        "2 layers, hidden 32, 4 heads of 8 (2 key-value), vocabulary 100, context 64",
        "id 2, '</s>'",
        "vision+projector onnx w8a8 12 B vision / stored: max_abs 0.01, cosine 0.9999",
        "decoder.onnx.data 256 B",
    ):
        assert fact in words


def test_inspect_as_json_is_the_manifest(make_bundle: Callable[..., Bundle], capsys: Capture) -> None:
    path = make_bundle().path
    assert call("inspect", path, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((path / "manifest.json").read_text())


def test_inspect_of_nothing_says_how_to_make_one(tmp_path: Path, capsys: Capture) -> None:
    assert call("inspect", tmp_path / "none") == 1
    shown = capsys.readouterr().err
    assert "it does not exist\n" in shown and "edge export CHECKPOINT -o BUNDLE" in shown


def test_devices_lists_the_profiles_and_this_machine(capsys: Capture) -> None:
    from edge.devices import detect, profiles

    assert call("devices") == 0
    shown = capsys.readouterr().out
    assert fits(shown)
    table, _, here = shown.partition("this machine")
    # A long name goes on in a line of its own, below itself.
    rows = [line.split() for line in table.splitlines()[2:] if line[:1].strip()]
    assert [p.id for p in profiles()] == [row[0] for row in rows]
    assert detect().name in " ".join(here.split())


def test_one_device_is_shown_with_its_sources(capsys: Capture) -> None:
    assert call("devices", "sd_888") == 0
    shown = capsys.readouterr().out
    assert fits(shown)
    assert "51.2 GB/s" in shown and "nanoreview" in shown and "estimate" in shown
    assert call("devices", "generic_x86", "--json") == 0
    assert json.loads(capsys.readouterr().out)["id"] == "linux-x86"
    assert call("devices", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"rpi5", "jetson_xavier_nx"} <= {device["id"] for device in listed["devices"]}
    assert listed["this"]["id"] == "this"
    assert call("devices", "rpi6") == 2
    assert "did you mean rpi4, rpi5" in capsys.readouterr().err


def test_fit_of_a_bundle(make_bundle: Callable[..., Bundle], capsys: Capture) -> None:
    path = make_bundle().path
    assert call("fit", path, "--device", "rpi5") == 0
    shown = capsys.readouterr().out
    assert fits(shown)
    assert "tiny fits Raspberry Pi 5, with a context of 64" in " ".join(shown.split())
    assert "from published decoding" in " ".join(shown.split())
    assert call("fit", path, "--device", "rpi5", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in found["rows"]} >= {"peak memory, one answer", "first token", "decode"}
    assert call("fit", path, "--device", "rpi6") == 2
    assert call("fit", path, "--device", "rpi5", "--context", "65") == 2


def test_fit_of_a_checkpoint(
    exporter: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_bundle(tmp_path / "OUT")
    assert call("fit", "CKPT", "--device", "rpi_zero_2w", "--scheme", "w4", "--mmproj", "m", "--base", "b") == 0
    places = {"vision_tower": None, "mmproj": Path("m"), "base": "b"}
    assert exporter.requests == [("CKPT", "onnx-w8a8-w4", None, ("w4",), places)], "the device's recipe"
    assert "tiny fits Raspberry Pi Zero 2 W" in " ".join(capsys.readouterr().out.split())


def test_run_takes_no_more_than_it_may(session: FakeSession, picture: str, capsys: Capture) -> None:
    session.plan.given_up = ("KV cache in q8_0", "vision encoder and decoder open one at a time")
    assert call("run", "b", picture, "What?", "--max-memory", "1.5GB") == 0
    assert session.opened[0]["max_memory"] == 1_500_000_000
    assert "little memory: KV cache in q8_0, vision encoder and decoder open one at a time\n" in capsys.readouterr().err
    assert call("run", "b", picture, "What?", "--max-memory", "much") == 2
    assert "no size: 'much'" in capsys.readouterr().err


def test_run_tells_what_isa_does_not_bind(session: FakeSession, picture: str, capsys: Capture) -> None:
    session.plan.free = ("onnxruntime",)
    assert call("run", "b", picture, "What?", "--isa", "neon") == 0
    assert capsys.readouterr().err.startswith("--isa neon does not bind onnxruntime: ")


def test_run_tells_what_stays_on_the_processor(session: FakeSession, picture: str, capsys: Capture) -> None:
    session.plan.notes = ("the vision (w8a8) on the CPU: no kernels",)
    assert call("run", "b", picture, "What?") == 0
    assert capsys.readouterr().err.startswith("the vision (w8a8) on the CPU: no kernels\n")


def test_verify_names_what_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    told: list[dict[str, Any]] = []
    on_card = replace(REPORT, providers=("vision cuda", "decoder cuda"), notes=("derived, not measured",))

    def verify(bundle: Bundle, **options: Any) -> Report:
        told.append(options)
        return on_card

    monkeypatch.setattr("edge.verify.verify", verify)
    path = write_bundle(tmp_path / "bundle").path
    assert call("verify", path, "--provider", "cuda", "--gpu-layers", "3") == 0
    assert told == [{"threads": 0, "isa": None, "provider": "cuda", "gpu_layers": 3}]
    assert f"{path} computes the same model on vision cuda, decoder cuda" in capsys.readouterr().err
    bad = Row("prefill", "stored", {"cosine": 0.5}, {"cosine": 0.999})
    on_card = replace(on_card, rows=(*on_card.rows, bad))
    assert call("verify", path) == 1
    shown = capsys.readouterr().err
    assert "derived, not measured" in shown
    assert "hint: the card's kernels are wrong" in shown
    assert call("verify", path, "--against", "ckpt", "--provider", "cuda") == 2


def test_doctor_shows_engines_and_processor(capsys: Capture) -> None:
    assert call("doctor") == 0
    shown = capsys.readouterr().out
    assert fits(shown)
    assert "onnxruntime" in shown
    assert call("doctor", "--json") == 0
    assert {"version", "engines", "features", "memory_bytes", "cores", "export_lacks"} <= json.loads(
        capsys.readouterr().out
    ).keys()


class Measured:
    """Stands for the measuring: gives rows, errors, or Ctrl-C."""

    def __init__(self, *found: Any) -> None:
        self.found = found
        self.requests: list[Request] = []

    def __call__(self, requests: list[Request]) -> Iterator[Any]:
        self.requests = requests
        for item in self.found:
            if isinstance(item, KeyboardInterrupt):
                raise item
            yield item


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    fake = Measured(*bench_rows())
    monkeypatch.setattr("edge.bench.runner.bench", fake)
    return fake


def test_bench_passes_on_what_is_asked(measured: Measured, capsys: Capture) -> None:
    options = "-p 100,190 -n 9 -d 0,188 -r 3 -t 1,2 --engine x --cache f16,q8_0 --image cat.jpg --sustained 2.5"
    assert call("bench", "a", "b", *options.split()) == 0
    sweep = [(r.bundle, r.threads, r.cache) for r in measured.requests]
    assert sweep == [(b, t, c) for b in "ab" for t in (1, 2) for c in ("f16", "q8_0")]
    asked = measured.requests[0]
    assert (asked.n_prompt, asked.n_gen, asked.n_depth, asked.repetitions) == ((100, 190), (9,), (0, 188), 3)
    assert (asked.engine, asked.picture, asked.sustained) == ("x", "cat.jpg", 2.5)
    assert capsys.readouterr().out.splitlines()[2].split("|")[5].strip() == "peak memory"
    assert call("bench", "a") == 0
    assert measured.requests == [Request("a")]


@pytest.mark.parametrize("output", ["json", "jsonl"])
def test_bench_prints_and_keeps_the_rows(measured: Measured, capsys: Capture, tmp_path: Path, output: str) -> None:
    assert call("bench", "bundle", "-o", output, "--save", str(tmp_path / "kept.json")) == 0
    (tmp_path / "printed").write_text(capsys.readouterr().out)
    assert results.read(tmp_path / "printed") == results.read(tmp_path / "kept.json") == bench_rows()


def test_ctrl_c_in_a_bench_keeps_the_rows(measured: Measured, capsys: Capture, tmp_path: Path) -> None:
    measured.found = (*bench_rows()[:4], KeyboardInterrupt())
    assert call("bench", "bundle", "-o", "json", "--save", str(tmp_path / "kept.json")) == 130
    assert json.loads(capsys.readouterr().out) == results.read(tmp_path / "kept.json") == bench_rows()[:4]


def test_a_bundle_that_cannot_be_measured_does_not_stop_the_others(measured: Measured, capsys: Capture) -> None:
    measured.found = (EngineError("no engine opens it", hint="pip install x"), *bench_rows())
    assert call("bench", "a", "b", "-o", "jsonl") == 1
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == len(bench_rows())
    assert shown.err == "error: no engine opens it\nhint: pip install x\n"
    measured.found = (UsageError("too many tokens"),)
    assert call("bench", "a", "-o", "json") == 2
    assert capsys.readouterr().out == ""


def test_bench_warns_once(measured: Measured, capsys: Capture) -> None:
    rows = [{**row, "warnings": [f"throttled: to {number} MHz"]} for number, row in enumerate(bench_rows())]
    measured.found = tuple(rows)
    assert call("bench", "bundle") == 0
    assert capsys.readouterr().err == "warning: peak memory: throttled: to 0 MHz\n"


def test_bench_compares_with_what_was_kept(measured: Measured, capsys: Capture, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    results.write(kept, bench_rows(0.8))
    assert call("bench", "bundle", "--compare", str(kept)) == 1
    shown = capsys.readouterr().err
    assert f"error: worse than {kept}: tiny w8a8+q4_0" in shown and "tg64: 20.0% SLOWER" in shown
    assert call("bench", "bundle", "--compare", str(kept), "--max-slower", "30") == 0
    assert "tg64: 20.0% slower" in capsys.readouterr().err
    kept.write_text("[")
    measured.requests = []
    assert call("bench", "bundle", "--compare", str(kept)) == 1
    assert measured.requests == []  # told before the work


@pytest.mark.parametrize("options", ["-o xml", "-p -1", "-n x", "-t 1,x", "-d -1", "--cache f8"])
def test_a_bench_that_is_off_exits_with_2(measured: Measured, capsys: Capture, options: str) -> None:
    assert call("bench", "bundle", *options.split()) == 2
    assert measured.requests == [] and capsys.readouterr().out == ""


def test_a_report_of_results(monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path) -> None:
    kept, calls = tmp_path / "kept.json", []
    results.write(kept, bench_rows())
    monkeypatch.setitem(sys.modules, "exporters.report", SimpleNamespace(write=lambda *given: calls.append(given)))
    assert call("report", str(kept), "-o", "page.html", "--bandwidth", "17") == 0
    assert calls == [({str(kept): bench_rows()}, Path("page.html"), 17e9)]
    assert capsys.readouterr() == ("", "written: page.html\n")
    kept.write_text("{")
    assert call("report", str(kept), "-o", "page.html") == 1
    assert len(calls) == 1


def test_a_report_without_its_libraries(monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path) -> None:
    results.write(tmp_path / "kept.json", bench_rows())
    for name in [name for name in sys.modules if name.startswith("exporters.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert call("report", str(tmp_path / "kept.json"), "-o", "page.html") == 1
    assert "pip install 'edge-vlm[report]'" in capsys.readouterr().err


# what the documents tell people to type


def documented(start: str) -> list[str]:
    """The lines of the documents' code blocks that begin so, without their comments, each once."""
    pages = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    blocks = [block for page in pages for block in page.read_text(encoding="utf-8").split("```")[1::2]]
    lines = [line for block in blocks for line in block.splitlines() if line.startswith(start)]
    return list(dict.fromkeys(line.partition("  #")[0].strip() for line in lines))


def test_the_documents_show_every_command() -> None:
    assert {line.split()[1] for line in documented("edge ")} == {
        c.callback.__name__ for c in cli.app().registered_commands if c.callback
    }


@pytest.mark.parametrize("line", [*documented("edge "), *documented(".venv/bin/edge ")])
@pytest.mark.usefixtures("session", "exporter")
def test_a_documented_command_works(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edge.verify.verify", lambda bundle, **options: REPORT)
    monkeypatch.setattr("edge.planning.placement.placements", lambda bundle: ())
    monkeypatch.setattr("edge.bench.runner.bench", Measured(*bench_rows()))
    monkeypatch.setattr("edge.bench.runner.prove", lambda request: {"ok": True, "rows": []})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("edge.server.run.serve", lambda sessions, settings, measure, ready: ready("http://here"))
    results.write(tmp_path / "results.json", bench_rows())
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    write_bundle(tmp_path / "OUT")
    for fetched in ("kept.address", "hub.bundle"):
        monkeypatch.setattr(f"edge.fetching.{fetched}", lambda name, told: tmp_path / "OUT")
    if " eval " in line:
        benchmarks(tmp_path / "benchmark_data")
        shutil.copytree(REPOSITORY / "calib_data", tmp_path / "MY_QUESTIONS")
        for name in ("fp32.jsonl", "w8a8.jsonl"):
            write_answers(tmp_path / name)
    for name in ("photo.jpg", "before.jpg", "after.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "table.json").write_text('{"type": "object"}')
    decoder, mmproj = pair_decoder(), pair_mmproj()
    decoder[0]["tokenizer.chat_template"] = jinja(prompt(144, 1, (2,)), lambda i: "</s>")
    (tmp_path / "MODEL.gguf").write_bytes(gguf_bytes(*decoder))
    (tmp_path / "MMPROJ.gguf").write_bytes(gguf_bytes(*mmproj))
    (tmp_path / "exporters").symlink_to(REPOSITORY / "exporters")  # its pictures
    assert call(*shlex.split(line)[1:]) == 0


def test_the_documented_python_works(session: FakeSession, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    (code,) = (REPOSITORY / "README.md").read_text(encoding="utf-8").split("```python")[1:]
    exec(code.partition("```")[0], {})
    assert capsys.readouterr().out.count("A red star.") == 4
    assert [c[:2] for c in session.calls] == [("stream", "photo.jpg")] * 2 + [("chat", "photo.jpg")] + [
        ("stream", "same")
    ] * 2


# as a process

MAIN = "from edge.cli import main; raise SystemExit(main())"


def test_a_reader_that_stops_reading_is_no_error(make_bundle: Callable[..., Bundle]) -> None:
    command = [sys.executable, "-c", MAIN, "inspect", str(make_bundle().path), "--json"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as edge:
        assert edge.stdout is not None
        assert edge.stderr is not None
        edge.stdout.close()
        assert edge.stderr.read() == b""


def test_help_needs_neither_the_run_side_nor_the_export_side() -> None:
    listing = "import atexit, sys; atexit.register(lambda: print(*sys.modules)); sys.argv = ['edge', 'run', '--help']"
    code = f"{listing}; {MAIN}"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "edge.cli" in loaded
    heavy = ("numpy", "PIL", "tokenizers", "torch", "onnxruntime", "edge.inference.session")
    assert [m for m in heavy if m in loaded] == []
