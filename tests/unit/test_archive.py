from __future__ import annotations

import zipfile
from dataclasses import replace

import pytest
from commands import call

from edge.bundle import archive
from edge.bundle.manifest import Bundle
from edge.errors import BundleError, UsageError


def test_the_zip_is_the_bundle(make_bundle, tmp_path):
    bundle = make_bundle()
    written = archive.package(bundle, tmp_path / "app.zip")
    assert written == (tmp_path / "app.zip").stat().st_size
    with zipfile.ZipFile(tmp_path / "app.zip") as opened:
        opened.extractall(tmp_path / "again")
        ways = {entry.filename: entry.compress_type for entry in opened.infolist()}
    again = Bundle.open(tmp_path / "again")
    again.check()
    assert again.manifest == bundle.manifest
    assert (ways["decoder.onnx.data"], ways["vision.onnx"]) == (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def test_the_same_bundle_gives_the_same_bytes(make_bundle, tmp_path):
    bundle = make_bundle()
    for name in ("a.zip", "b.zip"):
        archive.package(bundle, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_what_the_app_cannot_open_is_refused(make_bundle, tmp_path):
    bundle = make_bundle()
    vision, decoder = bundle.manifest.parts
    gguf = replace(bundle.manifest, parts=(vision, replace(decoder, format="gguf")))
    with pytest.raises(UsageError, match="the decoder part is gguf, and the app opens onnx") as caught:
        archive.package_for_android(Bundle(bundle.path, gguf), tmp_path / "app.zip")
    assert "--recipe balanced" in str(caught.value.hint)
    table = replace(decoder.files[0], path="embed_tokens.npy", bytes=2**31)
    large = replace(bundle.manifest, parts=(vision, replace(decoder, files=(table,))))
    with pytest.raises(BundleError, match="2,147,483,648 bytes"):
        archive.package_for_android(Bundle(bundle.path, large), tmp_path / "app.zip")
    assert not list(tmp_path.glob("app*"))


def test_a_damaged_bundle_leaves_what_was_there(make_bundle, tmp_path):
    bundle = make_bundle()
    place = tmp_path / "app.zip"
    place.write_bytes(b"before")
    (bundle.path / "vision.onnx").write_bytes(b"vision graqh")
    assert call("package", bundle.path, "--android", place).code == 1
    assert place.read_bytes() == b"before"
    assert list(tmp_path.glob("app*")) == [place]


def test_the_command_says_what_it_wrote(make_bundle, tmp_path):
    bundle, place = make_bundle(), tmp_path / "app.zip"
    done = call("package", bundle.path, "--android", place, "--json")
    assert done.code == 0
    assert done.json == {"path": str(place), "bytes": place.stat().st_size, "name": "tiny"}
    assert str(place) in call("package", bundle.path, "--android", place).err
    assert call("package", bundle.path, "--android", tmp_path / "no" / "app.zip").code == 1
