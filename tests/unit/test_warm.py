"""What is shipped beside a bundle for one kind of machine: used where it is vouched for and fits, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import call
from fakes import DECODER, FIXED, NumpyGraph, write_golden, write_model_bundle
from PIL import Image
from signing import sign, trust

import edge
from edge.bundle import manifest as bundles
from edge.bundle import warm
from edge.bundle.manifest import Bundle
from edge.cli import verify as command
from edge.devices import file_facts, host, once
from edge.engines import EngineInfo, installed_engines, open_part
from edge.formats import xnnpack_cache
from edge.inference import constant_prefix, generate, loader, warming
from edge.types import Graph, OpenOptions, PartFiles
from edge.verify import Report, Row

RIGHT = Report((Row("tokens", "stored", {"tokens": 1.0}, {"tokens": 1.0}),))
PACKED = b"packed weights"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(once, "_SAID", set())
    monkeypatch.setattr(xnnpack_cache, "_USED", {})
    monkeypatch.setattr(warm, "installed_engines", lambda: [EngineInfo("a", ("onnx",), "library", True, "1", None)])
    for name in ("XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "config"))
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    return tmp_path / "cache" / "edge-vlm"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    found = write_model_bundle(tmp_path / "bundle", context=400)
    write_golden(found)
    return Bundle.open(found.path)


def weights(bundle: Bundle) -> Path:
    return bundle.path / "decoder.onnx"


@pytest.fixture
def shipped(bundle: Bundle, cache: Path) -> Path:
    """The folder beside the bundle, of packed weights and a prefix; the cache does not have them any more."""
    with xnnpack_cache.weights(weights(bundle), "library 1") as part:
        assert part is not None
        part.write_bytes(PACKED)
    prefix = file_facts.private_folder("prefixes") / "0123-4567-33.safetensors"
    prefix.write_bytes(b"keys and values")
    assert warm.write(bundle, [*xnnpack_cache.used(), prefix], {"library": "1"}) == len(PACKED) + 15
    shutil.rmtree(cache / xnnpack_cache.FOLDER)
    prefix.unlink()
    return bundle.path / warm.FOLDER


def mapped(bundle: Bundle) -> Path | None:
    """What the library would be given."""
    with xnnpack_cache.weights(weights(bundle), "library 1", warm.files(bundle)) as path:
        return path


def changed(folder: Path, **facts: Any) -> None:
    """Another description, which is vouched for."""
    place = folder / warm.NAME
    place.write_text(json.dumps({**json.loads(place.read_bytes()), **facts}))
    sign(folder, warm.NAME)
    trust()


def test_what_was_written_here_is_used(bundle: Bundle, shipped: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = warm.files(bundle)
    assert {path.parent for path in found} == {shipped}
    assert {path.read_bytes() for path in found} == {PACKED, b"keys and values"}
    (path,) = shipped.glob("*.bin")
    assert mapped(bundle) == path
    assert sorted(os.listdir(shipped)) == sorted([warm.NAME, *(file.name for file in found)])
    assert caplog.records == []
    bundle.check()


def test_a_bundle_without_is_as_ever(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    assert warm.files(bundle) == ()
    assert caplog.records == []


@pytest.mark.parametrize("signed", ["nobody", "a key", "a trusted key"])
def test_what_came_from_elsewhere_needs_a_signature_of_its_own(
    bundle: Bundle, shipped: Path, signed: str, caplog: pytest.LogCaptureFixture, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "another"))
    if signed != "nobody":
        sign(shipped, warm.NAME)
    if signed == "a trusted key":
        trust()
        assert mapped(bundle) in warm.files(bundle)
        assert caplog.records == []
        return
    assert mapped(bundle) not in (None, *shipped.iterdir())
    (warning,) = caplog.records
    assert warning.getMessage().startswith(f"{shipped} is not used: nothing vouches for it")


def test_a_wrong_signature_is_none(bundle: Bundle, shipped: Path, caplog: pytest.LogCaptureFixture) -> None:
    sign(shipped, warm.NAME)
    trust()
    with (shipped / warm.NAME).open("a") as file:
        file.write("\n")
    assert warm.files(bundle) == ()
    assert "is not what" in caplog.text


def test_another_bundles(bundle: Bundle, shipped: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundles.write_manifest(bundle.path, replace(bundle.manifest, name="another"))
    assert warm.files(Bundle.open(bundle.path)) == ()
    assert "it belongs to another bundle" in caplog.text


def test_another_processors(
    bundle: Bundle, shipped: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = host.inspect()
    for other in (replace(here, name="another"), replace(here, isa=(*here.isa, "more"))):
        monkeypatch.setattr(host, "inspect", lambda other=other: other)
        assert warm.files(bundle) == ()
    (warning,) = caplog.records
    assert f"it is for another processor: {here.name}" in warning.getMessage()


@pytest.mark.parametrize(("version", "said"), [("2", "here it is 2"), (None, "here it is not installed")])
def test_another_librarys(
    bundle: Bundle, shipped: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    version: str | None, said: str,
) -> None:  # fmt: skip
    info = EngineInfo("a", ("onnx",), "library", version is not None, version, None)
    monkeypatch.setattr(warm, "installed_engines", lambda: [info])
    assert warm.files(bundle) == ()
    assert f"it is for library 1; {said}" in caplog.text


@pytest.mark.parametrize(
    "facts",
    [
        {"schema": 2}, {"schema": None}, {"bundle": 3}, {"processor": []}, {"libraries": ["library"]}, {"files": 3},
        {"files": [3]}, {"files": [{"path": "x"}]}, {"files": [{"path": "x", "bytes": 1, "sha256": "0"}]},
        {"files": [{"path": "../manifest.json", "bytes": 1, "sha256": "0"}]},
        {"files": [{"path": 3, "bytes": 1, "sha256": "0"}]}, {"files": [{"path": "", "bytes": 1, "sha256": "0"}]},
    ],
)  # fmt: skip
def test_a_description_that_is_none(
    bundle: Bundle, shipped: Path, facts: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Though a trusted key signed it."""
    changed(shipped, **facts)
    assert warm.files(bundle) == ()
    (warning,) = caplog.records
    assert f"{shipped} is not used: " in warning.getMessage()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_description(
    bundle: Bundle, shipped: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (shipped / warm.NAME).write_bytes(content)
    sign(shipped, warm.NAME)
    trust()
    assert warm.files(bundle) == ()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("how", ["cut", "gone", "a link", "a folder"])
def test_a_file_that_is_not_whole(
    bundle: Bundle, shipped: Path, suffix: str, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = shipped.glob(f"*{suffix}")
    content = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(content[:-1])
    elif how == "a link":
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    elif how == "a folder":
        path.mkdir()
    assert mapped(bundle) not in (None, *shipped.iterdir())
    assert f"{shipped} is not used: " in caplog.records[0].getMessage()


def test_packed_weights_of_another_content_are_not_mapped(
    bundle: Bundle, shipped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As many bytes, and a name that says otherwise; it is left as it is."""
    (path,) = shipped.glob("*.bin")
    path.write_bytes(PACKED[::-1])
    assert mapped(bundle) not in (None, path)
    (warning,) = caplog.records
    assert warning.getMessage() == f"{path} is damaged; weights are packed again"
    assert path.read_bytes() == PACKED[::-1]


def test_a_prefix_of_another_content_is_not_answered_from(
    bundle: Bundle, shipped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = shipped.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[::-1])
    assert warm.files(bundle) == ()
    assert f"{path.name} is damaged" in caplog.text


def test_what_is_not_listed_is_not_used(bundle: Bundle, shipped: Path) -> None:
    (path,) = shipped.glob("*.bin")
    entries = json.loads((shipped / warm.NAME).read_bytes())["files"]
    changed(shipped, files=[entry for entry in entries if entry["path"] != path.name])
    assert mapped(bundle) != path


def test_what_is_written_anew_leaves_nothing_of_before(bundle: Bundle, shipped: Path, cache: Path) -> None:
    sign(shipped, warm.NAME)
    (path,) = shipped.glob("*.bin")
    warm.write(bundle, [path], {"library": "1"})
    assert sorted(os.listdir(shipped)) == sorted([warm.NAME, path.name])
    assert mapped(bundle) == path


def test_the_command_writes_what_was_made(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made.safetensors").write_bytes(b"made")
    made: list[Path] = []
    monkeypatch.setattr(command, "verified", lambda *_, **__: RIGHT)
    monkeypatch.setattr(warming, "warmed", lambda _: (made, {"library": "1"}))
    said = call("verify", bundle.path, "--warm", "--no-isolated")
    assert said.code == 2
    assert "hint: LiteRT and ExecuTorch keep some" in said.err
    assert call("verify", bundle.path, "--warm", "--isolated").code == 2
    made.append(tmp_path / "made.safetensors")
    said = call("verify", bundle.path, "--warm", "--no-isolated")
    assert said.code == 0
    assert said.err.endswith(f"{bundle.path / 'warm'}: 4 B, for machines like this one\n")
    assert [path.read_bytes() for path in warm.files(bundle)] == [b"made"]


def test_the_first_answer_elsewhere_begins_with_what_was_shipped(
    bundle: Bundle, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle's own system text, and nothing of others."""
    lengths: list[int] = []

    def opened(part: PartFiles, engine: str, options: OpenOptions) -> Graph:
        if "decoder" not in part.covers:
            return open_part(part, engine, options)  # type: ignore[return-value]
        graph = NumpyGraph(replace(DECODER, context=400), FIXED)
        graph.lengths = lengths
        return graph

    monkeypatch.setattr(loader, "open_part", opened)
    for module in (constant_prefix, generate):
        monkeypatch.setattr(module, "WORTH", 4)
    monkeypatch.setattr(warming, "load", lambda path: edge.load(path, engine="null"))
    monkeypatch.setattr(warm, "installed_engines", installed_engines)
    with edge.load(bundle.path, engine="null") as session:
        session.warm("My own secret system text.")
    made, libraries = warming.warmed(bundle)
    (prefix,) = made
    warm.write(bundle, made, libraries)
    sign(bundle.path / warm.FOLDER, warm.NAME)
    trust()
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "another"))
    with edge.load(bundle.path, engine="null") as session:
        session.ask(Image.new("RGB", (20, 30)), "Why?", max_tokens=2)
        assert session.last.cached_tokens == 1 + len("A chat. USER: ")
        assert constant_prefix.begun(bundle, session.plan, warm.files(bundle)) > 0
    assert not list((tmp_path / "another" / "edge-vlm").rglob("*.safetensors"))
    assert prefix.exists()
