"""The run side on emulated ARM processors: `make test-arm` makes the machines and runs this file.

What a processor does not have traps there, so that what passes on cortex-a72 uses no dot products.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import call
from conftest import REPOSITORY
from exported import Exports
from guests import ABSENT, CPUS, Guest, Job, Jobs, passed
from rich.console import Console
from rich.table import Table

pytestmark = pytest.mark.arm
DEMO = REPOSITORY / "exporters" / "demo"
PICTURE, QUESTION = DEMO / "pictures" / "shapes.png", "Describe the picture."
FIRST = "What colour is the star?"  # of the README
BLIND = "What colour is the sky?"
RECIPES = {  # of the bundles that are run
    "onnx": {},
    "tflite": {"format": "tflite"},
    "executorch": {"format": "executorch"},
    "gguf": {"recipe": "onnx-w8a8-gguf-q4_0"},
}
# Tests that start processes which start others take longer here than all others together.
STARTING = ("subprocess", "from remotes import", "runner.bench(")
MANY = {"unit": 1000, "engine": 100}  # tests that a tier has at least

each_cpu = pytest.mark.parametrize("cpu", CPUS)


@pytest.fixture(scope="session")
def bundles(exports: Exports) -> dict[str, Path]:
    """Of the demo checkpoint, exported here as anybody does."""
    return {name: exports.bundle(checkpoint=DEMO / "checkpoint", **asked) for name, asked in RECIPES.items()}


@pytest.fixture(scope="session")
def jobs(bundles: dict[str, Path], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """What the chosen tests need of the guests."""
    folder = tmp_path_factory.mktemp("guests")
    guests = {cpu: Guest(cpu, Path(os.environ["EDGE_ARM"]), folder) for cpu in CPUS}
    asked = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    wanted = {(one["cpu"], one["job"]): None for one in asked if "job" in one}
    archive = folder / "demo.zip"
    assert call("package", bundles["onnx"], "--zip", archive).code == 0
    return Jobs(guests, {**TIERS, **of(bundles, archive)}, wanted)


def of(bundles: dict[str, Path], archive: Path) -> dict[str, Job]:
    gguf = bundles["gguf"]
    blind = ("run", gguf, BLIND, "-t", 1, "--no-isolated", "--json")  # one process is traced
    found: dict[str, Job] = {"doctor": lambda guest: guest.edge("doctor", "--json")}
    found["all kernels"] = lambda guest: guest.traced("all kernels", *blind)
    found["only neon"] = lambda guest: guest.traced("only neon", *blind, "--isa", "neon")
    for name, path in bundles.items():
        found[f"verify {name}"] = partial(_verify, path)
        found[f"run {name}"] = partial(_run, name, path)
    found["run an archive"] = partial(_archived, archive)
    return found


def _verify(path: Path, guest: Guest) -> Any:
    return guest.edge("verify", path, "-t", 1, "--json")


def _run(name: str, path: Path, guest: Guest) -> Any:
    return guest.traced(name, "run", path, PICTURE, QUESTION, "-t", 1, "--no-isolated", "--json")


def _archived(archive: Path, guest: Guest) -> Any:
    """As a newcomer has it: nothing vouches for what was unpacked, so a process of its own opens it."""
    return guest.edge("run", archive, PICTURE, FIRST, "-t", 1)


def _unit(guest: Guest) -> Any:
    files = (REPOSITORY / "tests" / "unit").glob("test_*.py")
    starting = [file for file in files if any(word in file.read_text(encoding="utf-8") for word in STARTING)]
    return guest.tests("unit", starting)


TIERS: dict[str, Job] = {"unit": _unit, "engine": lambda guest: guest.tests("engine", ABSENT)}


def said(jobs: Jobs, cpu: str, job: str) -> Any:
    done = jobs.done(cpu, job)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def here(bundles: dict[str, Path]) -> Callable[..., Any]:
    """What this machine's own `edge COMMAND` says of a bundle."""

    def ask(command: str, name: str, *arguments: object) -> Any:
        done = call(command, bundles[name], *arguments, "-t", 1, "--json")
        assert done.code == 0, done.err
        return done.json

    return ask


@each_cpu
@pytest.mark.parametrize("job", TIERS)
def test_the_tests_of_a_tier(jobs: Jobs, cpu: str, job: str) -> None:
    assert passed(jobs.done(cpu, job)) >= MANY[job]


@each_cpu
@pytest.mark.parametrize("job", [f"verify {name}" for name in RECIPES])
def test_a_bundle_computes_the_same_model(jobs: Jobs, cpu: str, job: str, here: Callable[..., Any]) -> None:
    report = said(jobs, cpu, job)
    assert report["ok"] is True
    agreement = {row["against"]: row["error"] for row in report["rows"] if row["stage"] == "tokens"}
    ours = {row["against"]: row["error"] for row in here(*job.split())["rows"] if row["stage"] == "tokens"}
    assert agreement == ours


@each_cpu
@pytest.mark.parametrize("job", [f"run {name}" for name in RECIPES])
def test_an_answer_is_the_one_of_this_machine(jobs: Jobs, cpu: str, job: str, here: Callable[..., Any]) -> None:
    found, ours = said(jobs, cpu, job), here(*job.split(), PICTURE, QUESTION)
    assert found["token_ids"] == ours["token_ids"]
    assert len(found["token_ids"]) > 30
    assert found["text"].startswith("Top: a large yellow star.")


@each_cpu
@pytest.mark.parametrize("job", ["run an archive"])
def test_the_first_answer_comes_out_of_an_archive(jobs: Jobs, cpu: str, job: str) -> None:
    done = jobs.done(cpu, job)
    assert (done.returncode, done.stdout) == (0, "Yellow.\n"), done.stderr[-3000:]


@each_cpu
@pytest.mark.parametrize("job", [f"run {name}" for name in RECIPES])
def test_kernels_are_those_of_the_processor(jobs: Jobs, cpu: str, job: str) -> None:
    """Read off the instructions that the emulator translated."""
    said(jobs, cpu, job)
    used = jobs.guests[cpu].used(job.partition(" ")[2])
    assert set(used) == ({"neon"} if cpu == "cortex-a72" else {"neon", "dotprod"})
    assert used["neon"] > 100


@each_cpu
@pytest.mark.parametrize("job", ["doctor"])
def test_doctor_names_the_kernels(jobs: Jobs, cpu: str, job: str) -> None:
    engines = {engine["name"]: engine["kernels"] for engine in said(jobs, cpu, job)["engines"]}
    plain = cpu == "cortex-a72"
    assert engines == {
        "coreml": None,
        "executorch": None,
        "executorch_native": "unknown",
        "litert": "unknown",
        "llamacpp": "neon" if plain else "neon dotprod fp16",
        "onnxruntime": "neon" if plain else "neon dotprod",
        "tflite_runtime": None,
    }


@pytest.mark.parametrize(("cpu", "job"), [("cortex-a76", "all kernels"), ("cortex-a76", "only neon")])
def test_llamacpp_is_held_to_less(jobs: Jobs, cpu: str, job: str, here: Callable[..., Any]) -> None:
    found = said(jobs, cpu, job)
    assert found["token_ids"] == here("run", "gguf", BLIND)["token_ids"]
    assert found["plan"]["isa"] == (["neon"] if job == "only neon" else None)
    assert set(jobs.guests[cpu].used(job)) == ({"neon"} if job == "only neon" else {"neon", "dotprod"})


@pytest.mark.parametrize(("cpu", "job"), [(cpu, f"verify {name}") for cpu in CPUS for name in RECIPES][-1:])
def test_table(jobs: Jobs, cpu: str, job: str, here: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Not a test: what each stage differs by from torch on the same stored weights, on each processor."""
    table = Table("bundle", "stage", "measure", "here", *CPUS, title="Differences from torch, same stored weights")
    for name in RECIPES:
        reports = [here("verify", name), *(said(jobs, one, f"verify {name}") for one in CPUS)]
        for rows in zip(*(report["rows"] for report in reports), strict=True):
            if rows[0]["against"] != "fp32":
                for measure in rows[0]["error"]:
                    table.add_row(name, rows[0]["stage"], measure, *(f"{row['error'][measure]:.7g}" for row in rows))
    with capsys.disabled():
        Console(width=110).print("\n", table)
