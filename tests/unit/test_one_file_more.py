"""One file more is an engine, and one JSON more is a device: of what is there nothing is edited, but for an extra."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from commands import call
from conftest import REPOSITORY
from fakes import write_model_bundle
from newcomers import newcomers

import edge
from edge import devices
from edge.bundle import manifest as bundles
from edge.bundle.manifest import Bundle
from edge.engines import PACKAGE, EngineInfo, installed_engines
from edge.errors import EngineError

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def engine(package: str) -> str:
    """What opens `feathers`, and computes what the null engine does."""
    source = (REPOSITORY / PACKAGE / "null.py").read_text(encoding="utf-8")
    facts = {"formats": ("feathers",), "package": package}
    source, count = re.subn(r"^(ENGINE: EngineFacts) = .*$", rf"\1 = {facts!r}", source, flags=re.MULTILINE)
    assert count == 1
    return source


@pytest.fixture
def feathers(tmp_path: Path) -> Path:
    """A bundle whose parts are of a format that no engine of ours opens."""
    bundle = write_model_bundle(tmp_path / "bundle")
    parts = tuple(replace(part, format="feathers") for part in bundle.manifest.parts)
    bundles.write_manifest(bundle.path, replace(bundle.manifest, parts=parts))
    return Bundle.open(bundle.path).path


def test_an_engine_is_one_file(feathers: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no engine opens the vision"):
        edge.load(feathers)
    with newcomers(tmp_path / "more", PACKAGE, {"parrot": engine("numpy")}):
        with edge.load(feathers) as session:
            assert session.plan.engines == ("parrot",)
            assert len(session.ask(None, "Who?", max_tokens=3)) > 0
        assert call("run", feathers, "Who?", "-n", 2, "--no-isolated", "--json").json["generated_tokens"] == 2
        assert "parrot" in [found["name"] for found in call("doctor", "--json").json["engines"]]
    assert "parrot" not in [found.name for found in installed_engines()]


def test_what_is_installed_for_an_engine_is_the_extra_of_its_name(feathers: Path, tmp_path: Path) -> None:
    with (
        newcomers(tmp_path / "more", PACKAGE, {"grey_parrot": engine("no-such-library-anywhere")}),
        pytest.raises(EngineError, match="grey_parrot: no-such-library-anywhere is not installed") as caught,
    ):
        edge.load(feathers)
    assert "pip install 'edge-vlm[grey-parrot]'" in str(caught.value.hint)


@pytest.mark.parametrize("engine", installed_engines(), ids=lambda engine: engine.name)
def test_each_engine_has_an_extra_of_its_name(engine: EngineInfo) -> None:
    """It brings the library, where the base install does not."""
    assert engine.extra == engine.name.replace("_", "-")
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"].get(engine.extra, ())]
    assert engine.package in [re.split(r"[^\w.-]", one)[0] for one in wanted]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The profiles, and room for one more."""
    copied = shutil.copytree(Path(devices.__file__).parent, tmp_path / "devices")
    monkeypatch.setattr(devices, "files", {devices.__name__: copied}.__getitem__)
    devices.profiles.cache_clear()
    yield copied
    devices.profiles.cache_clear()


def test_a_device_is_one_file(folder: Path, tmp_path: Path) -> None:
    told = json.loads((folder / "rpi5.json").read_text(encoding="utf-8"))
    told |= {"id": "toaster", "name": "Toaster 3", "aliases": ["t3"], "match": ["^Toaster 3"]}
    (folder / "toaster.json").write_text(json.dumps(told), encoding="utf-8")
    assert devices.profile("t3").name == "Toaster 3"
    assert devices.recognise("Toaster 3 Model T").id == "toaster"
    assert "toaster" in [found["id"] for found in call("devices", "--json").json["devices"]]
    bundle = write_model_bundle(tmp_path / "bundle").path
    assert call("fit", bundle, "--device", "toaster", "--json").json["fits"] is True
