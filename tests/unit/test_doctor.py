from __future__ import annotations

import json
import platform
from dataclasses import replace
from importlib import metadata
from typing import Any

import pytest
from card_fakes import ADA, CARD, with_card
from rich.console import Console

import edge
from edge import doctor
from edge.cli import render
from edge.devices import detect
from edge.devices.host import ISA
from edge.devices.nvidia import NONE
from edge.doctor import ARM, X86, diagnose
from edge.engines import EngineInfo
from edge.errors import EngineError

PRESENT = EngineInfo("fast", ("onnx", "gguf"), "fastlib", True, "1.2", None, kernels="a look")
ABSENT = EngineInfo("slow", ("coreml",), "slowlib", False, None, "slowlib is not installed")
NULL = EngineInfo("null", (), "numpy", True, "2", None)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_engines", lambda: (PRESENT, ABSENT, NULL))
    monkeypatch.setattr(doctor, "kernels", lambda name: ("neon", "dotprod") if name == "fast" else ())


def requirements(monkeypatch: pytest.MonkeyPatch, listed: list[str] | None) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: listed if name == "edge-vlm" else None)


def shown(found: doctor.Diagnosis) -> str:
    console = Console(width=80, markup=False, color_system=None)
    with console.capture() as capture:
        console.print(render.doctor(found))
    return capture.get()


@pytest.mark.usefixtures("engines")
def test_engines_and_what_to_do() -> None:
    found = diagnose()
    assert [(e.name, e.formats, e.version, e.todo) for e in found.engines] == [
        ("fast", ("onnx", "gguf"), "1.2", None),
        ("slow", ("coreml",), None, "pip install 'edge-vlm[slow]'"),
    ]
    lines = [line.split() for line in shown(found).splitlines()]
    assert ["fast", "onnx,", "gguf", "1.2", "ready"] in lines
    assert ["slow", "coreml", "not", "installed", "pip", "install", "'edge-vlm[slow]'"] in lines


@pytest.mark.usefixtures("engines")
def test_which_kernels_run_and_how_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnose()
    assert [(e.kernels, e.known_by) for e in found.engines] == [("neon dotprod", "a look"), (None, None)]
    assert ["fast", "neon", "dotprod", "a", "look"] in [line.split() for line in shown(found).splitlines()]
    monkeypatch.setattr(doctor, "kernels", lambda name: ())
    assert ["fast", "unknown"] in [line.split() for line in shown(diagnose()).splitlines()]

    def fails(name: str) -> Any:
        raise ImportError("no such symbol")

    monkeypatch.setattr(doctor, "kernels", fails)
    assert diagnose().engines[0].kernels is None


@pytest.mark.usefixtures("engines")
def test_an_engine_that_was_built_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    here = replace(detect(), isa=("avx2", "avx512_vnni", "amx"))
    monkeypatch.setattr(doctor, "detect", lambda: here)
    built = {"avx2": True, "avx512_vnni": False, "sve": False}
    engines = (replace(PRESENT, build="make it"),)
    monkeypatch.setattr(doctor, "installed_engines", lambda: engines)
    monkeypatch.setattr(doctor, "features", lambda name: built)
    assert diagnose().engines[0].todo == "make it (built without avx512_vnni)"
    assert "make it (built without" in " ".join(shown(diagnose()).split())
    built["avx512_vnni"] = True
    assert diagnose().engines[0].todo is None

    def fails(name: str) -> Any:
        raise ImportError("no such symbol")

    monkeypatch.setattr(doctor, "features", fails)
    assert diagnose().engines[0].todo == "no such symbol"


@pytest.mark.parametrize(("machine", "table"), [("x86_64", X86), ("AMD64", X86), ("aarch64", ARM), ("arm64", ARM)])
def test_features_are_those_of_this_kind_of_processor(
    monkeypatch: pytest.MonkeyPatch, machine: str, table: dict[str, str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    present = {name for number, name in enumerate(table) if number % 2}
    here = replace(detect(), name="a processor", memory_bytes=3 << 30, threads=6, isa=tuple(present))
    monkeypatch.setattr(doctor, "detect", lambda: here)
    found = diagnose()
    assert {f.name: f.present for f in found.features} == {name: name in present for name in table}
    assert (found.processor, found.memory_bytes, found.cores) == ("a processor", 3 << 30, 6)
    assert "a processor, 6 cores" in shown(found)
    assert "3.0 GiB free" in shown(found)


def test_every_feature_that_a_profile_can_name_is_explained() -> None:
    assert {*ARM, *X86} == set(ISA)


def test_what_exporting_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements(
        monkeypatch,
        [
            "numpy>=1.26",
            'no-such-distribution>=1; extra == "export"',
            'Also.Missing_One[fast]<3,>=1 ; extra == "export"',
            'pytest>=8; extra == "export"',
            'edge-vlm[onnxruntime]; extra == "export"',
            'unwanted-distribution; extra == "dev"',
        ],
    )
    found = diagnose()
    assert found.export_lacks == ("no-such-distribution", "Also.Missing_One")
    words = " ".join(shown(found).split())
    assert "pip install 'edge-vlm[export]' (lacks no-such-distribution, Also.Missing_One)" in words


@pytest.mark.parametrize("listed", [None, [], ['pytest; extra == "export"']])
def test_nothing_is_lacking(monkeypatch: pytest.MonkeyPatch, listed: list[str] | None) -> None:
    requirements(monkeypatch, listed)
    found = diagnose()
    assert found.export_lacks == ()
    assert ["edge", "export", "ready"] in [line.split() for line in shown(found).splitlines()]


def test_a_package_that_runs_from_its_sources_is_diagnosed(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", unknown)
    assert diagnose().export_lacks == ("edge-vlm",)


def test_a_card_and_what_each_engine_can_use_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = (replace(PRESENT, providers={"cuda": (), "tensorrt": ()}), replace(ABSENT, providers={"cuda": ()}))
    monkeypatch.setattr(doctor, "installed_engines", lambda: engines)
    monkeypatch.setattr(doctor, "kernels", lambda name: ())
    monkeypatch.setattr(doctor, "provider_refusals", lambda name: {"cuda": "", "tensorrt": "no libnvinfer"})
    here = detect()
    monkeypatch.setattr(doctor, "detect", lambda: with_card(here, replace(ADA, closed="it is busy")))
    found = diagnose()
    said = "Ada, sm_89, CUDA 13.0, memory 6,000 MB free of 8,000 MB on Ada; it is busy"
    assert (found.card, found.engines[0].providers) == (said, {"cuda": "", "tensorrt": "no libnvinfer"})
    assert found.engines[1].providers == {}
    lines = [line.split() for line in shown(found).splitlines()]
    assert ["fast", "cuda", "ready"] in lines
    assert ["fast", "tensorrt", "no", "libnvinfer"] in lines
    monkeypatch.setattr(doctor, "detect", lambda: with_card(here, CARD))
    assert diagnose().card == "Orin, sm_87, CUDA 12.6, memory shared with the system"
    monkeypatch.setattr(doctor, "detect", lambda: with_card(here, None, "it sleeps"))
    assert diagnose().card == "it sleeps"

    def fails(name: str) -> Any:
        raise EngineError("no such library")

    monkeypatch.setattr(doctor, "provider_refusals", fails)
    assert diagnose().engines[0].providers == {"cuda": "no such library", "tensorrt": "no such library"}


@pytest.mark.usefixtures("engines")
def test_without_a_card_nobody_is_told_to_install_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = (replace(PRESENT, providers={"cuda": ()}),)
    here = replace(detect(), graphics=NONE)
    monkeypatch.setattr(doctor, "detect", lambda: here)
    monkeypatch.setattr(doctor, "installed_engines", lambda: engines)
    monkeypatch.setattr(doctor, "provider_refusals", lambda name: {"cuda": "install more"})
    assert diagnose().card is None
    assert "install more" not in shown(diagnose())
    assert "no driver" in shown(diagnose())


def test_json_says_the_same() -> None:
    found = diagnose()
    data = json.loads(json.dumps(found.to_json()))
    assert data["version"] == edge.__version__
    assert data["python"] == platform.python_version()
    assert [e["name"] for e in data["engines"]] == [e.name for e in found.engines]
