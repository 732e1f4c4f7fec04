"""Words of bundles, models and other machines do not steer the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from edge.bundle.manifest import Bundle
from edge.cli import main, output, run
from edge.cli.output import plain
from edge.cli.render import Stages
from edge.errors import BundleError

EVIL = "a\x1b]0;owned\x07\x1b[31mb\x9b31mc\rd\x08e\x7ff\u202eg\ud800h"
STEERS = {*map(chr, range(32)), *map(chr, range(127, 160)), "\u202e", "\ud800"} - {"\n", "\t"}


def assert_plain(text: str) -> None:
    assert "owned" in text
    assert not STEERS & set(text)


def test_line_breaks_tabs_and_all_writing_stay() -> None:
    text = "a\n\tb é 中 ع 👩‍👩‍👧 \u00a0 ﬁ"
    assert plain(text) == text


def test_what_is_said_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    output.say(EVIL)
    output.write(EVIL)
    output.complain(BundleError(EVIL, hint=EVIL))
    out, err = capsys.readouterr()
    assert_plain(out)
    assert_plain(err)
    assert err.count("owned") == 3


def test_tables_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(EVIL)
    table.add_row(EVIL)
    output.print_rich(table)
    assert_plain(capsys.readouterr().out)


def test_tables_keep_their_own_colours() -> None:
    console = Console(force_terminal=True, color_system="standard", width=80)
    with console.capture() as captured:
        console.print(output.Plain("\x1b[35mred"), style="red")
    assert captured.get().startswith("\x1b[31m ")
    assert "\x1b[35m" not in captured.get()


def test_json_says_the_same_in_plain_characters(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({EVIL: [EVIL]})
    out = capsys.readouterr().out
    assert_plain(out)
    assert json.loads(out) == {EVIL: [EVIL]}


@pytest.mark.parametrize("terminal", [True, False])
def test_an_answer_is_plain_on_a_terminal_only(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    run._stream(iter(["x\x1b[31m", "y\n"]))
    assert capsys.readouterr().out == ("x [31my\n\n" if terminal else "x\x1b[31my\n\n")


def test_progress_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    with Stages(Console(file=sys.stderr, width=200)) as stages:
        stages.report(EVIL, 0.5)
        stages.say(EVIL)
    err = capsys.readouterr().err
    assert "\x1b]0;owned" not in err
    assert "\u202e" not in err


@pytest.mark.parametrize("field", ["name", "license", "recipe"])
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_manifest_is_printed_plainly(
    make_bundle: Callable[..., Bundle], field: str, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    path: Path = make_bundle().path
    manifest = json.loads((path / "manifest.json").read_bytes())
    evil = EVIL.replace("\ud800", "")  # which no manifest can have
    (path / "manifest.json").write_text(json.dumps({**manifest, field: evil}))
    with pytest.raises(SystemExit) as left:
        main(["inspect", str(path), *options])
    assert left.value.code == 0
    assert_plain(capsys.readouterr().out)
