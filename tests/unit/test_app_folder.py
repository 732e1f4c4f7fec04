from __future__ import annotations

from dataclasses import replace

import pytest
from commands import call

from edge.bundle import app_folder
from edge.bundle.manifest import Bundle
from edge.errors import BundleError, UsageError


def changed(bundle: Bundle, **fields) -> Bundle:
    """With these fields in both parts."""
    parts = tuple(replace(part, **fields) for part in bundle.manifest.parts)
    return Bundle(bundle.path, replace(bundle.manifest, parts=parts))


def test_the_folder_is_the_bundle_without_companions(make_bundle, tmp_path):
    bundle = make_bundle()
    (bundle.path / "notes.txt").write_text("mine")
    written = app_folder.package(bundle, tmp_path / "app")
    again = Bundle.open(tmp_path / "app")
    again.check()
    assert again.manifest == bundle.manifest
    found = {path.relative_to(tmp_path / "app").as_posix(): path.stat().st_size for path in again.path.rglob("*")}
    assert set(found) == {"manifest.json", *(file.path for file in bundle.manifest.own())}
    assert written == sum(found.values())


def test_what_no_engine_of_the_app_opens_is_refused(make_bundle, tmp_path):
    bundle = make_bundle()
    vision, decoder = bundle.manifest.parts
    mixed = replace(bundle.manifest, parts=(vision, replace(decoder, format="coreml")))
    for odd in (changed(bundle, format="gguf"), Bundle(bundle.path, mixed)):
        with pytest.raises(UsageError, match="no engine of the app opens") as caught:
            app_folder.package(odd, tmp_path / "app")
        assert "--recipe coreml-w8-w4" in str(caught.value.hint)
    assert not list(tmp_path.glob("*app*"))


def test_a_part_for_a_newer_system_is_refused(make_bundle, tmp_path):
    bundle = make_bundle()
    newer = changed(bundle, details={"minimum": {"ios": "26.1"}})
    with pytest.raises(UsageError, match=r"needs iOS 26\.1, and the app runs on 18\.0"):
        app_folder.package(newer, tmp_path / "app")
    with pytest.raises(BundleError, match="'soon', which is no version"):
        app_folder.package(changed(bundle, details={"minimum": {"ios": "soon"}}), tmp_path / "app")
    assert app_folder.package(changed(bundle, details={"minimum": {"ios": "18.0"}}), tmp_path / "app") > 0


def test_what_is_larger_than_an_app_may_be_is_refused(make_bundle, tmp_path):
    bundle = make_bundle()
    file = replace(bundle.manifest.parts[0].files[0], bytes=5 * 10**9)
    with pytest.raises(UsageError, match="may have 4,000,000,000"):
        app_folder.package(changed(bundle, files=(file,)), tmp_path / "app")


def test_a_damaged_bundle_leaves_what_was_there(make_bundle, tmp_path):
    bundle, place = make_bundle(), tmp_path / "app"
    app_folder.package(bundle, place)
    (bundle.path / "vision.onnx").write_bytes(b"vision graqh")
    assert call("package", bundle.path, "--ios", place).code == 1
    Bundle.open(place).check()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not a bundle"):
        app_folder.package(Bundle.open(place), tmp_path / "mine")


def test_the_command_packages_for_one_app(make_bundle, tmp_path):
    bundle, place = make_bundle(), tmp_path / "app"
    done = call("package", bundle.path, "--ios", place, "--json")
    assert (done.code, done.json["path"], done.json["name"]) == (0, str(place), "tiny")
    assert str(place) in call("package", bundle.path, "--ios", place).err
    for options in ([], ["--ios", place, "--android", tmp_path / "app.zip"]):
        said = call("package", bundle.path, *options)
        assert said.code != 0 and "one place at a time" in said.err
