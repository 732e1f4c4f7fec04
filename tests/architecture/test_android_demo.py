"""The Android demo's two builds: what Gradle is told, which nobody runs here, is what `make android` builds."""

from __future__ import annotations

import re
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from conftest import REPOSITORY

import edge

DEMO = REPOSITORY / "android_demo"
APP = (DEMO / "app/build.gradle.kts").read_text(encoding="utf-8")
BUILD = (DEMO / "build-apk").read_text(encoding="utf-8")
CATALOGUE = tomllib.loads((DEMO / "gradle/libs.versions.toml").read_text(encoding="utf-8"))
ANDROID, TOOLS = ("{http://schemas.android.com/" + name + "}" for name in ("apk/res/android", "tools"))


def names(path: str, kind: str) -> dict[str, str | None]:
    """Elements of a manifest by their names, with what becomes of them when manifests are merged."""
    root = ET.parse(DEMO / path).getroot()
    return {node.attrib[ANDROID + "name"]: node.attrib.get(TOOLS + "node") for node in root.iter(kind)}


def test_both_builds_are_for_the_same_systems() -> None:
    for setting, option in (("minSdk", "--min-sdk-version"), ("targetSdk", "--target-sdk-version")):
        told = re.search(rf"{setting} = (\d+)", APP)
        assert told and f"{option} {told[1]}" in BUILD
    assert f'versionName = "{edge.__version__}"' in APP


def test_gradle_takes_an_onnx_runtime_that_reports_nothing() -> None:
    assert CATALOGUE["versions"]["onnxruntime"] == "1.26.0"
    overlay = "app/src/gradle/AndroidManifest.xml"
    network = (f"android.permission.{name}" for name in ("INTERNET", "ACCESS_NETWORK_STATE"))
    assert names(overlay, "uses-permission") == dict.fromkeys(network, "remove")
    assert set(names(overlay, "provider").values()) == {"remove"}
    assert 'manifest.srcFile("src/gradle/AndroidManifest.xml")' in APP


def test_the_app_itself_asks_for_the_camera_alone() -> None:
    assert names("app/src/main/AndroidManifest.xml", "uses-permission") == {"android.permission.CAMERA": None}


@pytest.mark.parametrize("script", ["build.gradle.kts", "app/build.gradle.kts", "core/build.gradle.kts"])
def test_what_gradle_is_asked_for_is_in_the_catalogue(script: str) -> None:
    known = {f"libs.plugins.{name.replace('-', '.')}" for name in CATALOGUE["plugins"]}
    known |= {f"libs.{name.replace('-', '.')}" for name in CATALOGUE["libraries"]}
    asked = set(re.findall(r"\blibs\.[\w.]+", (DEMO / script).read_text(encoding="utf-8")))
    assert asked and asked <= known
    for entry in (*CATALOGUE["plugins"].values(), *CATALOGUE["libraries"].values()):
        if "version" in entry or not entry["module"].startswith("androidx.compose."):  # these are the BOM's
            assert entry["version"]["ref"] in CATALOGUE["versions"]


def test_each_build_has_a_screen_of_its_own() -> None:
    assert "src/compose/kotlin" in APP and "src/framework/" not in APP
    assert "src/framework" in BUILD and "src/compose" not in BUILD
    assert {path.parts[-6] for path in DEMO.rglob("MainActivity.kt")} == {"compose", "framework"}


def test_gradle_is_asked_for_what_the_compose_screen_imports() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (DEMO / "app/src/compose").rglob("*.kt"))
    imported = set(re.findall(r"^import (androidx\.(?:compose\.)?\w+)", sources, re.MULTILINE))
    libraries = {f"libs.{name.replace('-', '.')}": entry for name, entry in CATALOGUE["libraries"].items()}
    asked = {libraries[name]["module"].split(":")[0] for name in re.findall(r"n\((libs\.[\w.]+)\)", APP)}
    assert imported and imported <= asked
    assert "platform(libs.compose.bom)" in APP and "compose = true" in APP
    assert "android.useAndroidX=true" in (DEMO / "gradle.properties").read_text(encoding="utf-8")
    assert CATALOGUE["plugins"]["kotlin-compose"]["version"]["ref"] == "kotlin"


def test_gradle_is_pinned_by_its_sum() -> None:
    told = (DEMO / "gradle/wrapper/gradle-wrapper.properties").read_text(encoding="utf-8")
    assert re.search(r"^distributionSha256Sum=[0-9a-f]{64}$", told, re.MULTILINE)


@pytest.mark.parametrize("path", sorted(DEMO.rglob("*.kt")), ids=lambda path: path.name)
def test_a_file_says_its_purpose_first(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("/** ")
    assert len(lines) <= 270
    assert max(map(len, lines)) <= 120
