"""The APK of `make android`: what it asks for, what it holds, how it lies and who signed it. EDGE_APK names it."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.bundle.manifest import Bundle

pytestmark = pytest.mark.apk
PAGE = 16384
MOST = 35_000_000
LOAD, ARM64 = 1, 183  # of ELF: a segment that is mapped, and the processor


@pytest.fixture(scope="module")
def apk() -> Path:
    return Path(os.environ["EDGE_APK"])


@pytest.fixture(scope="module")
def archive(apk: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(apk) as opened:
        yield opened


@pytest.fixture(scope="module")
def manifest(apk: Path) -> str:
    return tool("aapt2", "dump", "xmltree", str(apk), "--file", "AndroidManifest.xml")


def tool(*command: str) -> str:
    tools = Path(os.environ["EDGE_ANDROID_TOOLS"])
    first = ["java", "-jar", str(tools / "apksigner.jar")] if command[0] == "apksigner" else [str(tools / command[0])]
    return subprocess.run([*first, *command[1:]], check=True, capture_output=True, text=True).stdout


def elements(manifest: str, kind: str) -> list[str]:
    """The names of a manifest's elements of one kind."""
    found = re.findall(rf"E: {kind} \(line=\d+\)\n((?:\s+A: .*\n)*)", manifest)
    return [re.search(r':name\(0x[0-9a-f]+\)="([^"]+)"', attributes).group(1) for attributes in found]


def start(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    """Where an entry's bytes begin."""
    assert archive.fp is not None
    archive.fp.seek(entry.header_offset + 26)
    name, extra = struct.unpack("<HH", archive.fp.read(4))
    return entry.header_offset + 30 + name + extra


def test_it_asks_for_the_camera_alone_and_has_these_components_only(apk, manifest):
    assert elements(manifest, "uses-permission") == ["android.permission.CAMERA"]
    asked = re.findall(r"uses-permission: name='([^']+)'", tool("aapt2", "dump", "permissions", str(apk)))
    assert asked == ["android.permission.CAMERA"]
    assert "uses-feature-not-required: name='android.hardware.camera" in tool("aapt2", "dump", "badging", str(apk))
    found = {kind: elements(manifest, kind) for kind in ("activity", "service", "receiver", "provider")}
    package = "dev.edgevlm.demo"
    expected = {"activity": [".MainActivity"], "service": [], "receiver": [], "provider": [".PhotoProvider"]}
    assert {kind: [name.replace(package, "") for name in names] for kind, names in found.items()} == expected


def test_it_is_for_android_8_and_newer(apk):
    badging = tool("aapt2", "dump", "badging", str(apk))
    assert "minSdkVersion:'26'" in badging or "sdkVersion:'26'" in badging
    assert "targetSdkVersion:'36'" in badging
    assert "launchable-activity: name='dev.edgevlm.demo.MainActivity'" in badging


def test_it_is_signed_by_schemes_2_and_3(apk):
    said = tool("apksigner", "verify", "--verbose", "--min-sdk-version", "26", str(apk))
    assert "Verified using v2 scheme (APK Signature Scheme v2): true" in said
    assert "Verified using v3 scheme (APK Signature Scheme v3): true" in said


def test_libraries_lie_on_pages_of_16_kb(archive):
    libraries = [entry for entry in archive.infolist() if entry.filename.endswith(".so")]
    names = {"lib/arm64-v8a/libonnxruntime.so", "lib/arm64-v8a/libonnxruntime4j_jni.so"}
    assert {entry.filename for entry in libraries} == names
    for entry in libraries:
        assert (entry.compress_type, start(archive, entry) % PAGE) == (zipfile.ZIP_STORED, 0), entry.filename
        content = archive.read(entry)
        assert content[:4] == b"\x7fELF" and struct.unpack_from("<H", content, 18)[0] == ARM64
        table, size, count = struct.unpack_from("<Q", content, 32)[0], *struct.unpack_from("<HH", content, 54)
        segments = [struct.unpack_from("<IIQQQQQQ", content, table + size * number) for number in range(count)]
        mapped = [segment for segment in segments if segment[0] == LOAD]
        assert mapped and all(segment[7] % PAGE == 0 for segment in mapped), entry.filename


def test_stored_files_are_aligned(archive):
    stored = [entry for entry in archive.infolist() if entry.compress_type == zipfile.ZIP_STORED]
    assert "resources.arsc" in {entry.filename for entry in stored}
    assert [entry.filename for entry in stored if start(archive, entry) % 4] == []


def test_nothing_in_it_reports_to_anybody(archive):
    for entry in archive.infolist():
        if entry.filename.endswith((".dex", ".so")):
            content = archive.read(entry)
            for word in (b"TelemetryInitializer", b"ai/onnxruntime/telemetry", b"events.data.microsoft.com"):
                assert word not in content, f"{word!r} in {entry.filename}"


def test_the_bundle_in_it_is_whole_and_its_engine_is_there(archive, tmp_path):
    for entry in archive.infolist():
        if entry.filename.startswith("assets/demo/"):
            archive.extract(entry, tmp_path)
    bundle = Bundle.open(tmp_path / "assets" / "demo")
    bundle.check()
    assert {part.format for part in bundle.manifest.parts} == {"onnx"}
    assert "assets/ThirdPartyNotices.txt" in archive.namelist()


def test_it_is_no_larger_than_it_need_be(apk):
    assert apk.stat().st_size <= MOST
