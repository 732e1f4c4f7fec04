"""The iOS demo's property lists and project: what the app asks for, tells, and is made of."""

from __future__ import annotations

import plistlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY

DEMO = REPOSITORY / "ios_demo"
PROJECT = (DEMO / "project.yml").read_text(encoding="utf-8")
SOURCES = sorted(DEMO.glob("App/Sources/*.swift"))


def plist(name: str) -> dict[str, Any]:
    found: dict[str, Any] = plistlib.loads((DEMO / "App" / name).read_bytes())
    return found


def test_the_app_gives_a_reason_for_all_that_it_asks_for() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    told = plist("Info.plist")
    asked = {"NSCameraUsageDescription": "AVCaptureDevice", "NSMicrophoneUsageDescription": "for: .audio"}
    assert {key for key, word in asked.items() if word in code} == {key for key in told if key.endswith("Description")}
    assert all(len(told[key]) > 20 for key in told if key.endswith("Description"))
    assert "UILaunchScreen" in told and told["CFBundleIdentifier"] == "$(PRODUCT_BUNDLE_IDENTIFIER)"


def test_the_app_tracks_nobody_and_collects_nothing() -> None:
    told = plist("PrivacyInfo.xcprivacy")
    assert (told["NSPrivacyTracking"], told["NSPrivacyTrackingDomains"]) == (False, [])
    assert told["NSPrivacyCollectedDataTypes"] == []
    reasons = {entry["NSPrivacyAccessedAPIType"]: entry for entry in told["NSPrivacyAccessedAPITypes"]}
    # Of ONNX Runtime, which has no manifest of its own: files' dates and the clock since the start.
    assert {name.removeprefix("NSPrivacyAccessedAPICategory") for name in reasons} == {
        "FileTimestamp",
        "SystemBootTime",
    }
    assert all(entry["NSPrivacyAccessedAPITypeReasons"] for entry in reasons.values())


def test_the_app_asks_for_more_memory_and_for_nothing_else() -> None:
    assert plist("EdgeVLM.entitlements") == {"com.apple.developer.kernel.increased-memory-limit": True}


def test_the_project_is_one_that_xcodegen_knows() -> None:
    told = yaml.safe_load(PROJECT)
    assert told.keys() <= {"name", "options", "packages", "targets", "settings", "schemes", "configs", "include"}
    assert told["options"].keys() <= {"bundleIdPrefix", "deploymentTarget", "createIntermediateGroups", "xcodeVersion"}
    ((name, target),) = told["targets"].items()
    assert (name, target["type"], target["platform"]) == ("EdgeVLM", "application", "iOS")
    assert target.keys() == {"type", "platform", "sources", "dependencies", "settings"}
    for source in target["sources"]:
        entry = {"path": source} if isinstance(source, str) else source
        assert entry.keys() <= {"path", "type", "buildPhase", "optional", "excludes", "name"}
        assert (DEMO / entry["path"]).exists() or entry["optional"]
    package = (DEMO / "Package.swift").read_text(encoding="utf-8")
    made = set(re.findall(r'\.library\(name: "(\w+)"', package))
    for dependency in target["dependencies"]:
        assert dependency["package"] in told["packages"] and set(dependency["products"]) <= made
    assert (DEMO / told["packages"]["VLMCore"]["path"] / "Package.swift").is_file()
    modules = {
        word for path in SOURCES for word in re.findall(r"^import (\w+)$", path.read_text("utf-8"), re.MULTILINE)
    }
    assert modules & made == set(target["dependencies"][0]["products"])


@pytest.mark.parametrize("setting", ["INFOPLIST_FILE", "CODE_SIGN_ENTITLEMENTS"])
def test_the_project_names_files_that_are_there(setting: str) -> None:
    found = re.search(rf"{setting}: (\S+)", PROJECT)
    assert found and (DEMO / found[1]).is_file()


def test_project_and_package_are_for_the_same_systems() -> None:
    package = (DEMO / "Package.swift").read_text(encoding="utf-8")
    oldest = re.search(r'iOS: "(\d+)\.0"', PROJECT)
    assert oldest and f".iOS(.v{oldest[1]})" in package


def test_telemetry_is_off_before_the_library_is_touched() -> None:
    first = (DEMO / "Sources/VLMCore/Ort.swift").read_text(encoding="utf-8")
    assert 0 < first.index('setenv("ORT_DISABLE_TELEMETRY"') < first.index("OrtGetApiBase()")


@pytest.mark.parametrize("path", sorted(DEMO.rglob("*.swift")), ids=lambda path: path.name)
def test_a_file_says_its_purpose_first(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("// ")
    assert len(text.splitlines()) <= 270
