"""Commands that write: how each is called, and when what it wrote is whole."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from conftest import REPOSITORY
from forked import Running, command

from edge.bench import guard, results
from edge.bundle.manifest import Bundle
from edge.evaluation import answers_file
from edge.fetching.unpack import unpack
from edge.inference import saved

PICTURES = REPOSITORY / "exporters" / "demo" / "pictures"
QUESTIONS = (("shapes", "What colour is the star?"), ("sign", "What does the sign say?"), ("number", "How many stars?"))
ASKED = (PICTURES / "shapes.png", "What colour is the star?")


@dataclass(frozen=True)
class Given:
    """What commands read, made once: nothing here may change."""

    folder: Path
    bundle: Path
    address: str  # of its archive

    @property
    def archive(self) -> Path:
        return self.folder / "bundle.zip"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def results(self) -> Path:
        return self.folder / "results.json"


@dataclass(frozen=True)
class Writing:
    """`writes`: what the user has of it, below the folder that is given; nothing of a command that writes caches only.
    `whole` raises on anything but a whole one. `answers`: what it says is the same each time."""

    arguments: Callable[[Given, Path], tuple[object, ...]]
    writes: str = ""
    whole: Callable[[Given, Path], object] = lambda given, path: None
    answers: bool = False


def _bundle(given: Given, path: Path) -> None:
    Bundle.open(path).check()


def _zip(given: Given, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        unpack(path, Path(folder) / "bundle")
        _bundle(given, Path(folder) / "bundle")


def _page(given: Given, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.rstrip().endswith("</html>"), text[-80:]


def _answers(given: Given, path: Path) -> None:
    if not path.read_bytes().count(b"\n"):  # a run that has answered nothing yet
        return
    _, lines = answers_file.read(path)
    assert [line.id for line in lines] == ["1", "2", "3"][: len(lines)]


def _talk(given: Given, path: Path) -> None:
    saved.read(path, Bundle.open(given.bundle))


def _exported(format: str) -> Callable[[Given, Path], tuple[object, ...]]:
    return lambda given, out: ("export", given.checkpoint, "-o", out / "made", "--format", format, "--threads", 1)


def _packaged(option: str, name: str) -> Callable[[Given, Path], tuple[object, ...]]:
    return lambda given, out: ("package", given.bundle, option, out / name)


COMMANDS = {
    "export to onnx": Writing(_exported("onnx"), "made", _bundle),
    "export to gguf": Writing(_exported("gguf"), "made", _bundle),
    "export to tflite": Writing(_exported("tflite"), "made", _bundle),
    "package --zip": Writing(_packaged("--zip", "b.zip"), "b.zip", _zip),
    "package --android": Writing(_packaged("--android", "b.zip"), "b.zip", _zip),
    "package --hub": Writing(_packaged("--hub", "hub"), "hub", _bundle),
    "package --ios": Writing(_packaged("--ios", "app"), "app", _bundle),
    "inspect an archive": Writing(lambda given, out: ("inspect", given.archive, "--json")),
    "inspect an address": Writing(lambda given, out: ("inspect", given.address, "--json")),
    "run": Writing(lambda given, out: ("run", given.bundle, *ASKED), answers=True),
    "run an archive": Writing(lambda given, out: ("run", given.archive, *ASKED), answers=True),
    "run --session": Writing(
        lambda given, out: ("run", given.bundle, *ASKED, "--session", out / "talk"), "talk", _talk
    ),
    "verify": Writing(lambda given, out: ("verify", given.bundle)),
    "eval -o": Writing(
        lambda given, out: (
            *("eval", given.bundle, "--task", given.folder / "questions", "--data", given.folder / "questions"),
            *("-o", out / "answers.jsonl"),
        ),
        "answers.jsonl",
        _answers,
    ),
    "report": Writing(lambda given, out: ("report", given.results, "-o", out / "page.html"), "page.html", _page),
    "bench --save": Writing(
        lambda given, out: ("bench", given.bundle, "-p", 8, "-n", 2, "-r", 1, "--save", out / "r.json"),
        "r.json",
        lambda given, path: results.read(path),
    ),
    "guard": Writing(
        lambda given, out: ("guard", given.bundle, "-r", 1, "--renew", "--baseline", out / "guard.json"),
        "guard.json",
        lambda given, path: guard.read(path),
    ),
    "tune": Writing(lambda given, out: ("tune", given.bundle)),
}
ALONE = ("export to onnx", "export to gguf", "export to tflite")  # need torch
WITHOUT_ENGINE = ("package --zip", "package --hub", "inspect an archive", "inspect an address")


def make(folder: Path, bundle: Path, address: str, *, checkpoint: bool) -> Given:
    """What the commands read, in a new folder."""
    given = Given(folder, bundle, address)
    (questions := folder / "questions").mkdir()
    lines = []
    for name, question in QUESTIONS:
        shutil.copy(PICTURES / f"{name}.png", questions)
        lines.append(json.dumps({"image": f"{name}.png", "question": question, "answer": "red"}))
    (questions / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    from bench_fakes import run

    results.write(given.results, run(seconds=30))
    places = {"cache": folder / "cache", "below": folder}
    done = Running(command(("package", bundle, "--zip", given.archive)), folder / "logs", **places).ended()
    assert done.code == 0 and zipfile.is_zipfile(given.archive), done.err
    if checkpoint:
        done = Running(_standin(given.checkpoint), folder / "logs", **places).ended()
        assert done.code == 0, done.err
    return given


def _standin(path: Path) -> Callable[[], int]:
    def write() -> int:
        import torch

        from exporters import standin

        standin.write(path, standin.SHAPES["tiny"], projector="ldpnetv2", dtype=torch.float16)
        return 0

    return write
