"""The run side alone: with `edge/` and `runtimes/` and no exporters, a device runs an existing bundle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import REPOSITORY
from fakes import write_golden, write_model_bundle
from PIL import Image

# An editable install would bring the repository's own exporters back, in every process that is started.
SITE = """
import os, sys
from importlib.machinery import PathFinder

sys.path[:] = [place for place in sys.path if not os.path.isdir(os.path.join(place or ".", "exporters"))]
sys.meta_path[:] = [
    finder
    for finder in sys.meta_path
    if finder is PathFinder or getattr(finder, "find_spec", lambda name, path: None)("exporters", None) is None
]
"""
# `edge run` takes the device's engines, and the null engine only where it is asked for.
NULL = """
import functools, sys
from edge.cli import main
from edge.inference import session
session.load = functools.partial(session.load, engine="null")
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run side and a bundle."""
    folder = tmp_path_factory.mktemp("device")
    for package in ("edge", "runtimes"):
        shutil.copytree(REPOSITORY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "sitecustomize.py").write_text(SITE)
    write_golden(write_model_bundle(folder / "bundle"))
    Image.new("RGB", (20, 30), "red").save(folder / "photo.png")
    return folder


def there(device: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=device,
        env={**os.environ, "PYTHONPATH": str(device), "XDG_CACHE_HOME": str(device / "cache")},
        capture_output=True,
        text=True,
    )


def edge(device: Path, *arguments: str) -> str:
    done = there(device, ["-c", NULL, *arguments])
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_exporters_are_not_there(device: Path) -> None:
    done = there(device, ["-c", "import edge; print(edge.__file__); import exporters"])
    assert done.stdout.strip() == str(device / "edge" / "__init__.py")
    assert "No module named 'exporters'" in done.stderr


def test_a_bundle_is_loaded_and_asked(device: Path) -> None:
    code = "import edge; s = edge.load('bundle', engine='null'); print(len(s.ask('photo.png', '?', max_tokens=4)))"
    done = there(device, ["-c", code])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_edge_run(device: Path) -> None:
    answer = json.loads(edge(device, "run", "bundle", "photo.png", "What?", "-n", "3", "--no-isolated", "--json"))
    assert answer["generated_tokens"] == 3
    assert answer["image_tokens"] == 4


@pytest.mark.parametrize("name", ["rpi5", "linux-x86"])
def test_edge_fit(device: Path, name: str) -> None:
    found = json.loads(edge(device, "fit", "bundle", "--device", name, "--json"))
    assert found["fits"] is True
    assert {row["name"] for row in found["rows"]} >= {"bundle", "peak memory, one answer", "vision", "decode"}


def test_what_does_not_fit_names_what_would(device: Path) -> None:
    """The schemes to choose from are known without the formats that write them."""
    code = """
from dataclasses import replace
from edge.bundle.manifest import Bundle
from edge.planning.alternatives import schemes
from edge.planning.memory import Need
from edge.planning.sizes import sizes
manifest = Bundle.open("bundle").manifest
print(*schemes(Need(sizes(manifest, manifest.parts), 0, 0, 4, ()), 1 << 40), sep="\\n")
"""
    done = there(device, ["-c", code])
    assert {"onnx w4", "gguf q4_0", "tflite w4", "executorch 8da4w"} <= set(done.stdout.splitlines()), done.stderr


def test_edge_bench(device: Path) -> None:
    options = ["--engine", "null", "-p", "8", "-n", "2", "-r", "1", "-o", "json"]
    rows = json.loads(edge(device, "bench", "bundle", *options))
    assert {"pp8", "tg2", "own code per token", "load"} <= {row["test"] for row in rows}


def test_edge_devices_inspect_and_doctor(device: Path) -> None:
    assert "rpi5" in edge(device, "devices")
    assert json.loads(edge(device, "inspect", "bundle", "--json"))["name"] == "null"
    assert {engine["name"] for engine in json.loads(edge(device, "doctor", "--json"))["engines"]} >= {"onnxruntime"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "checkpoint", "-o", "out"],
        ["fit", "checkpoint", "--device", "rpi5"],
        ["verify", "bundle", "--against", "checkpoint"],
        ["report", "results.json", "-o", "page.html"],
        ["doctor", "model.gguf"],
    ],
)
def test_what_needs_the_export_side_says_so(device: Path, arguments: list[str]) -> None:
    (device / "results.json").write_text(json.dumps([{"schema": 1, "test": "load", "model_type": "x", "avg_ns": 1.0}]))
    done = there(device, ["-c", NULL, *arguments])
    assert done.returncode == 1
    assert "needs more than is installed: No module named 'exporters'" in done.stderr
    assert "pip install 'edge-vlm[" in done.stderr
