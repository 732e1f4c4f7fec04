"""What the README and the pages of docs/ tell people to type on the device, typed."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
from bench_fakes import run
from commands import call
from conftest import REPOSITORY
from evaluation_files import benchmarks, write_answers
from exported import Exports
from PIL import Image

from edge.bench import results
from edge.server import run as server

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = [README, *(page.read_text(encoding="utf-8") for page in sorted((REPOSITORY / "docs").rglob("*.md")))]
SHOWN = [line for page in PAGES for line in page.splitlines() if line.startswith("edge ")]
LINES = list(dict.fromkeys(line.partition("  #")[0].strip() for line in SHOWN))
HERE = [line for line in LINES if line.split()[1] not in ("export", "serve") and " mobilevlm " not in line]
SERVED = [line for line in LINES if line.split()[1] == "serve"]


@pytest.fixture(scope="module")
def place(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the lines name."""
    folder = tmp_path_factory.mktemp("device")
    os.symlink(exports.bundle(schemes=("fp32",)), folder / "OUT")
    os.symlink(exports.checkpoint(), folder / "CKPT")
    os.symlink(exports.calibration, folder / "MY_QUESTIONS")
    for file in exports.bundle(format="gguf").glob("*.gguf"):
        os.symlink(file, folder / ("MMPROJ.gguf" if file.name.startswith("mmproj") else "MODEL.gguf"))
    results.write(folder / "results.json", run())
    benchmarks(folder / "benchmark_data")
    for name in ("fp32.jsonl", "w8a8.jsonl"):
        write_answers(folder / name)
    (folder / "table.json").write_text('{"type": "object", "properties": {"things": {"type": "array"}}}')
    for seed, name in enumerate(("photo.jpg", "before.jpg", "after.jpg")):
        noise = np.random.default_rng(seed).integers(0, 256, (60, 80, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / name)
    return folder


@pytest.mark.parametrize("line", HERE)
def test_a_line_works(place: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for this machine's speed, which each `edge bench` measures first: test_devices.py looks at that."""
    monkeypatch.setattr("edge.bench.runner.measured", lambda here, lender: here)
    for fetched in ("kept.address", "hub.bundle"):  # test_fetching.py looks at that
        monkeypatch.setattr(f"edge.fetching.{fetched}", lambda name, told: place / "OUT")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))  # what is tuned is this folder's
    monkeypatch.chdir(place)
    said = call(*shlex.split(line)[1:], typed="What is this?\n")
    assert said.code == 0, said.err
    kept = {"report": "report.html", "package": line.split()[-1], "guard": "kept.json"}
    written = kept.get(line.split()[1])
    assert (place / written).exists() if written else said.out.strip()


@pytest.mark.parametrize("line", SERVED)
def test_a_line_would_serve(place: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    monkeypatch.chdir(place)
    monkeypatch.setattr(server, "serve", lambda sessions, settings, *_: begun.append((dict(sessions), settings)))
    said = call(*shlex.split(line)[1:])
    assert said.code == 0, said.err
    assert begun[0][0].keys() == {(place / "OUT").resolve().name}


def test_these_are_all_commands() -> None:
    assert {line.split()[1] for line in HERE} == {
        *("run", "verify", "bench", "tune", "guard", "eval", "report", "inspect", "devices", "fit", "package", "doctor")
    }
    assert {line.split()[1] for line in LINES} - {line.split()[1] for line in HERE} == {"export", "serve"}


def test_the_python_works(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (code,) = README.split("```python")[1:]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code.partition("```")[0], {"__name__": "readme"})
    assert "Timings(" in said.getvalue()
