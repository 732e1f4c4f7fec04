"""Bundles that are no folder yet: archives, addresses, repositories of the hub; and what a hostile one may not do."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import call
from conftest import REPOSITORY
from file_servers import Files, files

from edge import fetching
from edge.bundle import archive
from edge.bundle.manifest import Bundle
from edge.errors import BundleError, EdgeError, EngineError, UsageError
from edge.fetching import download, hub

PATH = "/bundle.zip"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edge-vlm" / "bundles"


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle()


@pytest.fixture
def zipped(bundle: Bundle, tmp_path: Path) -> bytes:
    archive.package(bundle, tmp_path / "bundle.zip")
    return (tmp_path / "bundle.zip").read_bytes()


@pytest.fixture
def web(zipped: bytes) -> Iterator[Files]:
    with files(files={PATH: zipped}) as served:
        yield served


def folder(place: object) -> Path:
    return fetching.folder(str(place), lambda _: None)


def kept(cache: Path) -> list[str]:
    """What is in the cache of bundles, but for the folders of whole ones."""
    return sorted(p.name for p in cache.glob("*/*") if p.name != "bundle")


def test_a_folder_stays_what_it_is(bundle: Bundle, tmp_path: Path) -> None:
    assert folder(bundle.path) == bundle.path
    assert folder(tmp_path / "missing") == tmp_path / "missing"


def test_an_archive_is_unpacked_once(bundle: Bundle, zipped: bytes, tmp_path: Path, cache: Path) -> None:
    said: list[str] = []
    first = fetching.folder(str(tmp_path / "bundle.zip"), said.append)
    opened = Bundle.open(first)
    opened.check()
    assert opened.manifest == bundle.manifest
    assert fetching.folder(str(tmp_path / "bundle.zip"), said.append) == first
    assert said == [f"unpacking {tmp_path / 'bundle.zip'}"]
    (tmp_path / "other.zip").write_bytes(zipped)  # the same content
    assert folder(tmp_path / "other.zip") == first
    assert kept(cache) == []


def test_an_archive_may_have_its_bundle_in_a_folder(bundle: Bundle, zipped: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(zipped)) as source, zipfile.ZipFile(tmp_path / "in.zip", "w") as target:
        for name in source.namelist():
            target.writestr(f"demo/{name}", source.read(name))
        target.writestr("__MACOSX/demo/._manifest.json", b"")
    assert Bundle.open(folder(tmp_path / "in.zip")).manifest == bundle.manifest


def test_an_address_is_fetched_once(bundle: Bundle, web: Files, cache: Path) -> None:
    first = folder(web.address + PATH)
    assert Bundle.open(first).manifest == bundle.manifest
    assert folder(web.address + PATH) == first
    assert web.asked == [(PATH, "")]
    assert kept(cache) == []


def test_what_was_cut_off_goes_on(bundle: Bundle, web: Files, zipped: bytes) -> None:
    web.cut = 100
    with pytest.raises(BundleError, match="cannot be had") as caught:
        folder(web.address + PATH)
    assert "goes on" in str(caught.value.hint)
    assert Bundle.open(folder(web.address + PATH)).manifest == bundle.manifest
    assert web.asked == [(PATH, ""), (PATH, "bytes=100-")]


@pytest.mark.parametrize("ranges", [True, False])
def test_another_file_by_now_is_fetched_anew(bundle: Bundle, web: Files, zipped: bytes, ranges: bool) -> None:
    web.cut, web.files[PATH] = 100, b"x" * len(zipped)
    with pytest.raises(BundleError, match="cannot be had"):
        folder(web.address + PATH)
    web.files[PATH], web.ranges = zipped, ranges
    assert Bundle.open(folder(web.address + PATH)).manifest == bundle.manifest


def test_a_beginning_without_a_strong_name_is_not_gone_on_with(bundle: Bundle, web: Files) -> None:
    web.headers[PATH] = {"ETag": 'W/"weak"'}
    web.cut = 100
    with pytest.raises(BundleError, match="cannot be had"):
        folder(web.address + PATH)
    assert Bundle.open(folder(web.address + PATH)).manifest == bundle.manifest
    assert web.asked[-1] == (PATH, "")


def test_the_digest_of_an_address_holds(bundle: Bundle, web: Files, zipped: bytes, cache: Path) -> None:
    right = hashlib.sha256(zipped).hexdigest()
    assert Bundle.open(folder(f"{web.address}{PATH}#sha256={right}")).manifest == bundle.manifest
    with pytest.raises(BundleError, match="the address says 000000000000…"):
        folder(f"{web.address}{PATH}#sha256={'0' * 64}")
    with pytest.raises(UsageError, match="ends with what is no sha256"):
        folder(f"{web.address}{PATH}#sha256=12")
    assert kept(cache) == []


def test_a_way_that_others_can_change_is_refused(web: Files) -> None:
    for address in ("http://example.org/b.zip", "ftp://example.org/b.zip", "file:///etc/passwd", "https:///b.zip"):
        with pytest.raises(UsageError, match="is no https address"):
            folder(address)
    web.moved["/moved"] = "http://example.org/b.zip"
    with pytest.raises(UsageError, match=r"http://example.org/b.zip.* is no https address"):
        folder(web.address + "/moved")


def test_what_the_server_has_not_is_said(web: Files, cache: Path) -> None:
    with pytest.raises(BundleError, match="the server answers 404"):
        folder(web.address + "/none.zip")
    with pytest.raises(BundleError, match="cannot be had"):
        folder("http://127.0.0.1:1/b.zip")
    assert kept(cache) == []


def test_more_than_the_disk_takes_is_not_begun(web: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SPARE", 1 << 60)
    with pytest.raises(BundleError, match=r"the disk of .* has .* free"):
        folder(web.address + PATH)


def changed(zipped: bytes, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> bytes:
    """The archive with each member changed, or left out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(zipped)) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            if (new := change(name, source.read(name))) is not None:
                target.writestr(*new)
    return out.getvalue()


def manifest_with(change: Callable[[dict], None]) -> Callable[[str, bytes], tuple[str, bytes]]:
    def apply(name: str, content: bytes) -> tuple[str, bytes]:
        if name == "manifest.json":
            data = json.loads(content)
            change(data)
            content = json.dumps(data).encode()
        return name, content

    return apply


DAMAGES = {
    "no zip": lambda z: b"PK" + z[2:40],
    "cut off": lambda z: z[: len(z) // 2],
    "empty": lambda z: b"",
    "no manifest": lambda z: changed(z, lambda n, c: None if n == "manifest.json" else (n, c)),
    "no part": lambda z: changed(z, lambda n, c: None if n == "vision.onnx" else (n, c)),
    "another byte": lambda z: changed(z, lambda n, c: (n, c[:-1] + b"?") if n == "vision.onnx" else (n, c)),
    "longer": lambda z: changed(z, lambda n, c: (n, c + b"?" * 5000) if n == "vision.onnx" else (n, c)),
    "shorter": lambda z: changed(z, lambda n, c: (n, c[:-1]) if n == "vision.onnx" else (n, c)),
    "outside": lambda z: changed(z, manifest_with(lambda m: m["tokenizer"].update(path="../../evil.json"))),
    "absolute": lambda z: changed(z, manifest_with(lambda m: m["tokenizer"].update(path="/tmp/evil.json"))),
    "less than nothing": lambda z: changed(z, manifest_with(lambda m: m["tokenizer"].update(bytes=-2))),
    "a terabyte": lambda z: changed(z, manifest_with(lambda m: m["tokenizer"].update(bytes=10**15))),
    "the manifest twice": lambda z: changed(z, manifest_with(lambda m: m["tokenizer"].update(path="manifest.json"))),
    "no object": lambda z: changed(z, lambda n, c: (n, b"[]") if n == "manifest.json" else (n, c)),
    "no JSON": lambda z: changed(z, lambda n, c: (n, b"{") if n == "manifest.json" else (n, c)),
    "a deep one": lambda z: changed(z, lambda n, c: (n, b"[" * 10**6) if n == "manifest.json" else (n, c)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_archive_leaves_nothing(damage: str, zipped: bytes, tmp_path: Path, cache: Path) -> None:
    before = sorted(p for p in tmp_path.iterdir())
    (tmp_path / "bundle.zip").write_bytes(DAMAGES[damage](zipped))
    with pytest.raises(EdgeError) as caught:
        folder(tmp_path / "bundle.zip")
    assert caught.value.hint
    assert not list(cache.glob("*/*"))
    assert sorted(p for p in tmp_path.iterdir() if p.name != "cache") == before


def test_what_no_manifest_names_is_not_unpacked(bundle: Bundle, zipped: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bundle.zip", "a") as opened:
        opened.writestr("../../evil", b"evil")
        opened.writestr("more.txt", b"more")
    found = folder(tmp_path / "bundle.zip")
    assert {p.name for p in found.rglob("*")} == {p.name for p in bundle.path.rglob("*")}
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes of folders")
def test_a_cache_that_cannot_be_written_is_said(zipped: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EdgeError, match="cannot keep a bundle in the cache") as caught:
        folder(tmp_path / "bundle.zip")
    assert "XDG_CACHE_HOME" in str(caught.value.hint)


def test_the_commands_take_an_archive(zipped: bytes, bundle: Bundle, tmp_path: Path) -> None:
    said = call("inspect", tmp_path / "bundle.zip", "--json")
    assert json.loads(said.out) == json.loads((bundle.path / "manifest.json").read_bytes())
    assert said.err.startswith("unpacking ")
    assert call("inspect", tmp_path / "none.zip").code == 1


REVISION = "a" * 40
ASK_HUB = """
from edge import fetching
from edge.errors import EdgeError
try:
    print(fetching.folder("somebody/bundle", print))
except EdgeError as error:
    print(error)
"""


@pytest.fixture
def the_hub(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """Lines that a process says who asks a hub for the bundle; `.web` is that hub."""
    with files() as web:
        sizes = {path.name: path.stat().st_size for path in bundle.path.iterdir()}
        info = {"id": "somebody/bundle", "sha": REVISION, "private": False}
        info["siblings"] = [{"rfilename": name, "size": size} for name, size in sizes.items()]
        tree = [{"type": "file", "path": name, "size": size, "oid": "b" * 40} for name, size in sizes.items()]
        for revision in ("main", REVISION):
            web.files[f"/api/models/somebody/bundle/revision/{revision}"] = json.dumps(info).encode()
            web.files[f"/api/models/somebody/bundle/tree/{revision}"] = json.dumps(tree).encode()
            for path in bundle.path.iterdir():
                place = f"/somebody/bundle/resolve/{revision}/{path.name}"
                web.files[place], web.headers[place] = path.read_bytes(), {"X-Repo-Commit": REVISION}

        def ask() -> list[str]:
            own = {"HF_ENDPOINT": web.address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
            done = subprocess.run(
                [sys.executable, "-c", ASK_HUB],
                env={**os.environ, **own},
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
            )
            return done.stdout.splitlines()

        ask.web = web  # type: ignore[attr-defined]
        yield ask


def test_a_bundle_of_the_hub_is_fetched_once(bundle: Bundle, the_hub: Callable[[], list[str]], tmp_path: Path) -> None:
    asking, place = the_hub()
    assert asking == "asking the hub for somebody/bundle"
    assert Path(place).is_relative_to(tmp_path / "hf")
    found = Bundle.open(place)
    found.check()
    assert found.manifest == bundle.manifest
    the_hub.web.asked.clear()
    assert the_hub() == [place]
    assert the_hub.web.asked == []


def test_a_file_that_the_hub_has_otherwise_is_not_fetched(bundle: Bundle, the_hub: Callable[[], list[str]]) -> None:
    page = f"/api/models/somebody/bundle/revision/{REVISION}"
    info = json.loads(the_hub.web.files[page])
    next(s for s in info["siblings"] if s["rfilename"] == "vision.onnx")["size"] = 10**12
    the_hub.web.files[page] = json.dumps(info).encode()
    _, said, _ = the_hub()
    assert said.startswith("vision.onnx of 'somebody/bundle' has 1,000,000,000,000 bytes on the hub, and ")
    assert not [path for path, _ in the_hub.web.asked if path.endswith("vision.onnx")]


def test_what_is_no_bundle_on_the_hub_is_said(the_hub: Callable[[], list[str]]) -> None:
    for path in [path for path in the_hub.web.files if path.endswith("/manifest.json")]:
        del the_hub.web.files[path]
    for page in [page for page in the_hub.web.files if "/tree/" in page]:
        the_hub.web.files[page] = b"[]"
    assert the_hub()[1:] == [
        "'somebody/bundle' on the hub is no bundle: it has no manifest.json",
        "hint: if it is a checkpoint: edge export somebody/bundle -o BUNDLE",
    ]
    the_hub.web.files.clear()
    assert "no such repository on the hub" in the_hub()[1] or "cannot be asked" in the_hub()[1]


def test_without_the_hubs_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(EngineError, match="there is no folder 'somebody/bundle' here") as caught:
        hub.bundle("somebody/bundle", lambda _: None)
    assert caught.value.hint == "pip install 'edge-vlm[hub]'"
