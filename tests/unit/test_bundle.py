from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from conftest import FILES, REPOSITORY, write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.bundle import folder_lock, staging
from edge.bundle import manifest as bundles
from edge.bundle.manifest import Bundle, File, Manifest, Part
from edge.devices import whole_files
from edge.errors import BundleError, EdgeError, UsageError

MakeBundle = Callable[..., Bundle]
DEAD = 2**22 + 1  # above the largest process id of Linux


def manifest_of(root: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((root / "manifest.json").read_text())
    return data


def rewrite(root: Path, **changes: Any) -> None:
    (root / "manifest.json").write_text(json.dumps({**manifest_of(root), **changes}))


def neighbours(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


# reading


def test_the_manifest_survives_being_written(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    assert Manifest.from_json(bundle.manifest.to_json()) == bundle.manifest
    assert Bundle.open(str(bundle.path)).manifest == bundle.manifest


def test_companions_are_kept_with_the_parts(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    assert bundle.manifest.companions == ()
    (bundle.path / "mmproj.gguf").write_bytes(b"for other tools")
    file = bundles.describe(bundle.path, bundle.path / "mmproj.gguf")
    rewrite(bundle.path, companions=[dataclasses.asdict(file)])
    found = Bundle.open(bundle.path)
    assert found.manifest.companions == (file,)
    assert file in found.manifest.files()
    assert Manifest.from_json(found.manifest.to_json()) == found.manifest
    schema = json.loads((REPOSITORY / "edge" / "bundle" / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(found.manifest.to_json())))
    (bundle.path / "mmproj.gguf").write_bytes(b"for other toolz")
    with pytest.raises(BundleError, match=r"mmproj\.gguf is not the file"):
        found.check()


def test_a_bundle_from_before_companions_is_read(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    data = manifest_of(bundle.path)
    del data["companions"]
    assert Manifest.from_json(data) == bundle.manifest


def test_the_manifest_is_what_the_schema_says(make_bundle: MakeBundle) -> None:
    schema = json.loads((REPOSITORY / "edge" / "bundle" / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    data = manifest_of(make_bundle().path)
    check.validate(data)
    for path in ("/etc/passwd", "../x", "a/../../x", "C:\\x", "..\\x"):
        data["golden"]["path"] = path
        assert not check.is_valid(data), path


@pytest.mark.parametrize(
    "key", ["schema", "name", "image", "vision", "prompt", "decoder", "parts", "tokenizer", "golden"]
)
def test_schema_and_reader_agree_on_what_must_be_there(make_bundle: MakeBundle, key: str) -> None:
    schema = json.loads((REPOSITORY / "edge" / "bundle" / "manifest.schema.json").read_text())
    data = manifest_of(make_bundle().path)
    del data[key]
    assert not jsonschema.Draft202012Validator(schema).is_valid(data)
    with pytest.raises(BundleError):
        Manifest.from_json(data)


def test_a_part_is_found_by_its_role(make_bundle: MakeBundle) -> None:
    manifest = make_bundle().manifest
    assert manifest.part("projector") is manifest.part("vision") is manifest.parts[0]
    assert manifest.part("decoder").scheme == "w4"
    with pytest.raises(BundleError, match="no part for the role 'ears'"):
        manifest.part("ears")


def test_files_of_a_part_are_absolute_for_an_engine(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    files = bundle.files(bundle.manifest.part("decoder"))
    assert files.files == (bundle.path / "decoder.onnx", bundle.path / "decoder.onnx.data")
    assert (files.format, files.scheme, files.covers) == ("onnx", "w4", ("decoder",))


def test_a_bundle_may_be_moved(make_bundle: MakeBundle, tmp_path: Path) -> None:
    moved = tmp_path / "ä new\nplace"
    make_bundle().path.rename(moved)
    Bundle.open(moved).check()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "has no manifest.json"),
        (lambda p: p.write_text("x"), "is not a directory"),
    ],
    ids=["missing", "empty", "file"],
)
def test_what_is_no_bundle_is_named(tmp_path: Path, make: Callable[[Path], Any], why: str) -> None:
    make(tmp_path / "thing")
    with pytest.raises(BundleError) as caught:
        Bundle.open(tmp_path / "thing")
    assert caught.value.message == f"no bundle at {str(tmp_path / 'thing')!r}: it {why}"
    assert "edge export CHECKPOINT -o BUNDLE" in str(caught.value.hint)


@pytest.mark.parametrize("path", FILES)
def test_a_flipped_byte_is_found(make_bundle: MakeBundle, path: str) -> None:
    bundle = make_bundle()
    content = bytearray((bundle.path / path).read_bytes())
    content[-1] ^= 1
    (bundle.path / path).write_bytes(content)
    opened = Bundle.open(bundle.path)  # the size is right: only reading it whole can tell
    with pytest.raises(BundleError, match=f"^{path} is not the file that was exported"):
        opened.check()


@pytest.mark.parametrize("path", FILES)
def test_a_missing_or_truncated_file_is_found_at_once(make_bundle: MakeBundle, path: str) -> None:
    bundle = make_bundle()
    (bundle.path / path).write_bytes(FILES[path][:-1])
    with pytest.raises(BundleError, match=f"^{path} has {len(FILES[path]) - 1} bytes, expected {len(FILES[path])}"):
        Bundle.open(bundle.path)
    (bundle.path / path).unlink()
    with pytest.raises(BundleError, match=f"lacks {path}"):
        Bundle.open(bundle.path)


def test_a_newer_schema_names_both_numbers(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    rewrite(bundle.path, schema=bundles.SCHEMA + 1)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert caught.value.message == "manifest.json has schema 3; this edge-vlm reads 1 and 2"
    assert "pip install -U edge-vlm" in str(caught.value.hint)


@pytest.mark.parametrize("schema", [0, -1])
def test_an_ancient_schema_asks_for_a_new_export(make_bundle: MakeBundle, schema: int) -> None:
    bundle = make_bundle()
    rewrite(bundle.path, schema=schema)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert "export" in str(caught.value.hint)


HUGE = 2**63


@pytest.mark.parametrize(
    ("place", "values"),
    [
        (("vision", "width"), (0, -1, 1.5, True, None, "4", 2**31, 10**400, ...)),
        (("vision", "positions"), (0, 2**31, None, ...)),
        (("decoder", "layers"), (0, True, 2**31, None, ...)),
        (("decoder", "ffn"), (0, None, "48", 2**31, ...)),
        (("decoder", "gated"), (None, 1, "yes", ...)),
        (("decoder", "family"), (None, 4, ...)),
        (("decoder", "rope"), (None, 10000.0, [], ...)),
        (("decoder", "rope", "theta"), (-1.0, "1e4", None, ...)),
        (("decoder", "rope", "scaling"), ("linear", [], 4.0, ...)),
        (("decoder", "rope", "dim"), (0, None, ...)),
        (("parts", 0, "weights"), (0, -1, 1.0, True, None, "9", HUGE, ...)),
        (("parts", 0, "bytes"), (0, 13, True, None, 1.0)),
        (("schema",), (True, 2.0, None, ...)),
    ],
    ids=str,
)
def test_facts_that_no_model_has_are_refused(make_bundle: MakeBundle, place: tuple[Any, ...], values: Any) -> None:
    """Before any arithmetic divides by them or overflows."""
    whole = make_bundle().manifest.to_json()
    for value in values:
        with pytest.raises(BundleError):
            Manifest.from_json(damaged(whole, place, value))


def test_scaled_positions_survive_being_written(make_bundle: MakeBundle) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    found = make_bundle().manifest
    spec = dataclasses.replace(found.spec, decoder=dataclasses.replace(found.spec.decoder, rope_scaling=scaling))
    written = dataclasses.replace(found, spec=spec)
    assert written.to_json()["decoder"]["rope"] == {"theta": 10000.0, "scaling": scaling, "dim": 8}
    assert Manifest.from_json(json.loads(json.dumps(written.to_json()))) == written


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", '{"schema": "1"}', "\xff", "[" * 100_000])
def test_what_is_no_manifest_is_refused(make_bundle: MakeBundle, text: str) -> None:
    bundle = make_bundle()
    (bundle.path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError):
        Bundle.open(bundle.path)


def test_a_manifest_that_may_not_be_read(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle()

    def refuse(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(BundleError, match=r"cannot read .*manifest\.json: Permission denied"):
        Bundle.open(bundle.path)


# a manifest is untrusted


@pytest.mark.parametrize("path", ["a\0b", "a\x1b[31m", "a\nb", "a\x9bb", "name:stream"])
def test_a_name_that_no_file_should_have_is_refused(
    make_bundle: MakeBundle, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "_STREAMS", True)
    bundle = make_bundle()
    rewrite(bundle.path, golden={**manifest_of(bundle.path)["golden"], "path": path})
    with pytest.raises(BundleError, match="names no file that can be") as caught:
        Bundle.open(bundle.path)
    assert caught.value.message.isprintable()


def test_a_manifest_that_says_something_twice_is_refused(make_bundle: MakeBundle) -> None:
    file = make_bundle().path / "manifest.json"
    file.write_text(file.read_text().replace('"license"', '"name": "another", "license"', 1))
    with pytest.raises(BundleError, match="'name' stands in it twice"):
        Bundle.open(file.parent)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../golden.safetensors",
        "a/../../golden.safetensors",
        "..",
        "C:\\x",
        "\\x",
        "..\\x",
        "//host/x",
        "",
    ],
)
def test_a_path_that_leaves_the_bundle_is_refused(make_bundle: MakeBundle, path: str) -> None:
    bundle = make_bundle()
    rewrite(bundle.path, golden={**manifest_of(bundle.path)["golden"], "path": path})
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle.path)
    assert caught.value.message == f"manifest.json names a file outside the bundle: {path!r}"
    assert "do not use" in str(caught.value.hint)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "golden.safetensors/x", "\udcff\ud800"])
def test_a_path_that_the_system_refuses_is_a_bundle_error(make_bundle: MakeBundle, path: str) -> None:
    bundle = make_bundle()
    rewrite(bundle.path, golden={**manifest_of(bundle.path)["golden"], "path": path})
    with pytest.raises(BundleError):
        Bundle.open(bundle.path)


def linked(bundle: Bundle, path: str, target: Path, content: bytes | None = None) -> None:
    """`path` becomes a link to `target`, which gets its content or another."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(FILES[path] if content is None else content)
    (bundle.path / path).unlink()
    (bundle.path / path).symlink_to(os.path.relpath(target, bundle.path))


def test_a_bundle_of_the_hubs_cache_is_opened(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle("hub/snapshots/0123")
    for number, path in enumerate(FILES):
        linked(bundle, path, tmp_path / "hub" / "blobs" / str(number))
    (bundle.path / "manifest.json").rename(tmp_path / "hub" / "blobs" / "manifest")
    (bundle.path / "manifest.json").symlink_to("../../blobs/manifest")
    Bundle.open(bundle.path).check()


@pytest.mark.parametrize("path", FILES)
def test_a_link_to_another_file_is_refused_at_once(make_bundle: MakeBundle, tmp_path: Path, path: str) -> None:
    """Of the same size even: before an engine could read a user's own file, or `bench --on` copy it."""
    bundle = make_bundle()
    secret = bytes(len(FILES[path]))
    linked(bundle, path, tmp_path / "secret", secret)
    with pytest.raises(BundleError, match=f"^{path} links to a place outside the bundle") as caught:
        Bundle.open(bundle.path)
    assert "do not use" in str(caught.value.hint)
    assert hashlib.sha256(secret).hexdigest()[:8] not in str(caught.value)


def test_a_folder_that_links_outside_is_held_to_the_same(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    (tmp_path / "elsewhere").mkdir()
    (bundle.path / "inner").symlink_to(tmp_path / "elsewhere")
    (bundle.path / "golden.safetensors").rename(tmp_path / "elsewhere" / "golden.safetensors")
    rewrite(bundle.path, golden={**manifest_of(bundle.path)["golden"], "path": "inner/golden.safetensors"})
    Bundle.open(bundle.path).check()
    (tmp_path / "elsewhere" / "golden.safetensors").write_bytes(bytes(len(FILES["golden.safetensors"])))
    with pytest.raises(BundleError, match=r"inner/golden\.safetensors links to a place outside"):
        Bundle.open(bundle.path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_link_to_what_is_no_file_is_not_read(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "nowhere"):
        (bundle.path / "golden.safetensors").unlink()
        (bundle.path / "golden.safetensors").symlink_to(target)
        with pytest.raises(BundleError, match=r"the bundle lacks golden\.safetensors"):
            Bundle.open(bundle.path)


def test_a_link_within_the_bundle_is_fine(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    (bundle.path / "golden.safetensors").rename(bundle.path / "other")
    (bundle.path / "golden.safetensors").symlink_to("other")
    Bundle.open(bundle.path).check()


def test_a_link_loop_is_refused(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    (bundle.path / "golden.safetensors").unlink()
    (bundle.path / "golden.safetensors").symlink_to(bundle.path / "golden.safetensors")
    with pytest.raises(BundleError):
        Bundle.open(bundle.path)


def test_a_link_to_the_whole_bundle_is_fine(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(make_bundle().path)
    Bundle.open(tmp_path / "link").check()


def places(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, from the root down."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [at, *(place for key, value in inner for place in places(value, (*at, key)))]


def damaged(data: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    data = copy.deepcopy(data)
    node = data
    for key in at[:-1]:
        node = node[key]
    if value is ...:
        del node[at[-1]]
    else:
        node[at[-1]] = value
    return data


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_only_a_bundle_error_escapes_a_damaged_manifest(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.getbasetemp() / "damaged"
    if not root.exists():
        write_bundle(root)
        shutil.copy(root / "manifest.json", root.with_name("whole.json"))
    whole = json.loads(root.with_name("whole.json").read_text())
    at = data.draw(st.sampled_from(places(whole)))
    value = data.draw(json_values | (st.just(...) if at else st.nothing()))
    (root / "manifest.json").write_text(json.dumps(damaged(whole, at, value)))
    try:
        written = Bundle.open(root).manifest.to_json()
    except BundleError:
        return
    assert repr(Manifest.from_json(written).to_json()) == repr(written)  # repr: a NaN equals nothing


@given(cut=st.integers(0, 3000), noise=st.binary(max_size=4))
@settings(max_examples=100, deadline=None)
def test_only_a_bundle_error_escapes_a_torn_manifest(
    cut: int, noise: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.getbasetemp() / "torn"
    if not root.exists():
        write_bundle(root)
        shutil.copy(root / "manifest.json", root.with_name("untorn.json"))
    whole = root.with_name("untorn.json").read_bytes()
    (root / "manifest.json").write_bytes(whole[: min(cut, len(whole) - 2)] + noise)
    with pytest.raises(BundleError):
        Bundle.open(root)


# writing


def test_a_bundle_appears_whole_and_alone(make_bundle: MakeBundle, tmp_path: Path) -> None:
    make_bundle("new/deep/bundle").check()
    assert neighbours(tmp_path / "new" / "deep") == ["bundle"]
    assert neighbours(tmp_path / "new" / "deep" / "bundle") == sorted([*FILES, "manifest.json"])


def test_a_bundle_is_replaced_only_by_a_whole_one(make_bundle: MakeBundle, tmp_path: Path) -> None:
    make_bundle(name="first")
    with contextlib.suppress(KeyboardInterrupt), staging.create(tmp_path / "bundle") as root:
        (root / "vision.onnx").write_bytes(b"half")
        raise KeyboardInterrupt
    old = Bundle.open(tmp_path / "bundle")
    old.check()
    assert old.manifest.name == "first"
    assert make_bundle(name="second").manifest.name == "second"
    assert neighbours(tmp_path) == ["bundle"]


def test_an_empty_directory_is_used(make_bundle: MakeBundle, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    make_bundle().check()


@pytest.mark.parametrize("content", ["file", "directory"])
def test_what_is_no_bundle_is_left_alone(tmp_path: Path, content: str) -> None:
    target = tmp_path / "thesis"
    if content == "file":
        target.write_text("years of work")
    else:
        target.mkdir()
        (target / "chapter1").write_text("years of work")
    with pytest.raises(UsageError, match="exists and is not a bundle"), staging.create(target):
        pytest.fail("the block must not run")
    kept = target if content == "file" else target / "chapter1"
    assert kept.read_text() == "years of work"


def test_a_bundle_behind_a_link_is_replaced_where_it_lies(make_bundle: MakeBundle, tmp_path: Path) -> None:
    make_bundle("real", name="first")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    make_bundle("link", name="second")
    assert (tmp_path / "link").is_symlink()
    assert Bundle.open(tmp_path / "real").manifest.name == "second"
    assert neighbours(tmp_path) == ["link", "real"]


@pytest.mark.parametrize(
    ("code", "message", "hint"),
    [
        (errno.ENOSPC, "no space left while writing", "space"),
        (errno.EROFS, "cannot write", " -o"),
    ],
)
def test_a_disk_that_refuses_leaves_nothing(tmp_path: Path, code: int, message: str, hint: str) -> None:
    with pytest.raises(EdgeError) as caught, staging.create(tmp_path / "bundle"):
        raise OSError(code, os.strerror(code))
    assert message in caught.value.message
    assert hint in str(caught.value.hint)
    assert neighbours(tmp_path) == []


def test_a_place_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(EdgeError, match="cannot write"), staging.create(tmp_path / "file" / "bundle"):
        pytest.fail("the block must not run")


def test_a_rename_that_fails_brings_the_old_bundle_back(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(name="first")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target.name == "bundle" and not self.name.endswith("-old"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(EdgeError, match="Input/output error"):
        make_bundle(name="second")
    assert Bundle.open(tmp_path / "bundle").manifest.name == "first"
    assert neighbours(tmp_path) == ["bundle"]


def test_a_full_disk_is_told_though_numpy_does_not_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4096))
    with pytest.raises(EdgeError, match="no space left"), staging.create(tmp_path / "bundle"):
        raise OSError("32768 requested and 15328 written")
    assert neighbours(tmp_path) == []


@pytest.mark.parametrize("moved", [False, True], ids=["before", "after"])
def test_a_signal_at_a_rename_loses_no_bundle(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    """It falls on the rename of the old bundle, before or after that is done."""
    make_bundle(name="first")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        monkeypatch.undo()
        if moved:
            rename(self, target)
        raise SystemExit(143)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(SystemExit):
        make_bundle(name="second")
    assert Bundle.open(tmp_path / "bundle").manifest.name == "first"
    assert neighbours(tmp_path) == ["bundle"]


# what a kill leaves behind

EXPORT = """
import signal, sys, time
from edge.bundle import staging
with staging.create(sys.argv[1]) as root:
    (root / "vision.onnx").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_export_leaves_the_old_bundle_and_the_next_one_tidies_up(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    make_bundle(name="first")
    command = [sys.executable, "-c", textwrap.dedent(EXPORT), str(tmp_path / "bundle")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as export:
        assert export.stdout is not None
        assert export.stdout.readline() == b"writing\n"
        assert len(neighbours(tmp_path)) == 2
        export.send_signal(signal.SIGKILL)
    assert Bundle.open(tmp_path / "bundle").manifest.name == "first"
    assert make_bundle(name="second").manifest.name == "second"
    assert neighbours(tmp_path) == ["bundle"]


def test_a_kill_between_the_two_renames_loses_no_bundle(make_bundle: MakeBundle, tmp_path: Path) -> None:
    make_bundle(name="first").path.rename(tmp_path / f".bundle.partial-{DEAD}-old")
    with pytest.raises(RuntimeError), staging.create(tmp_path / "bundle"):
        raise RuntimeError("the next export fails as well")
    assert Bundle.open(tmp_path / "bundle").manifest.name == "first"
    assert neighbours(tmp_path) == ["bundle"]


def test_a_running_export_is_left_alone(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """Whatever the number of its process is: in a container every run may have the same."""
    command = [sys.executable, "-c", textwrap.dedent(EXPORT), str(tmp_path / "bundle")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as export:
        assert export.stdout is not None
        assert export.stdout.readline() == b"writing\n"
        (running,) = neighbours(tmp_path)
        make_bundle().check()
        assert neighbours(tmp_path) == [running, "bundle"]
        export.send_signal(signal.SIGKILL)


def test_two_exports_at_once_share_no_file(tmp_path: Path) -> None:
    with staging.create(tmp_path / "bundle") as one:
        (one / "manifest.json").write_text("one")
        with staging.create(tmp_path / "bundle") as two:
            (two / "manifest.json").write_text("two")
            (two / "of two").write_text("two")
        assert neighbours(tmp_path / "bundle") == ["manifest.json", "of two"]
        (one / "of one").write_text("one")
    assert neighbours(tmp_path / "bundle") == ["manifest.json", "of one"]
    assert neighbours(tmp_path) == ["bundle"]


def test_a_bundle_that_is_being_replaced_is_not_taken_for_a_left_one(make_bundle: MakeBundle, tmp_path: Path) -> None:
    old = make_bundle(name="first").path.rename(tmp_path / ".bundle.partial-1-old")
    with folder_lock.held(old) as ours:
        assert ours
        make_bundle(name="second").check()
    assert neighbours(tmp_path) == [old.name, "bundle"]


def test_where_there_are_no_locks_nothing_is_swept(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    (tmp_path / ".bundle.partial-1").mkdir()
    make_bundle(name="first").check()
    make_bundle(name="second").check()
    assert neighbours(tmp_path) == [".bundle.partial-1", "bundle"]


def test_a_bundle_is_on_the_disk_before_it_has_its_name(
    make_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = whole_files.to_disk, Path.rename
    monkeypatch.setattr(whole_files, "to_disk", lambda path: done.append(path.name) or sync(path))
    monkeypatch.setattr(Path, "rename", lambda path, to: done.append(f"-> {to.name}") or rename(path, to))
    make_bundle()
    renamed = done.index("-> bundle")
    assert set(done[:renamed]) >= {*FILES, "manifest.json"}
    assert done[renamed + 1 :] == [tmp_path.name]


def test_a_name_with_wildcards_sweeps_only_its_own(make_bundle: MakeBundle, tmp_path: Path) -> None:
    for name in ("a", "[ab]"):
        (tmp_path / f".{name}.partial-{DEAD}").mkdir()
    make_bundle("[ab]").check()
    assert neighbours(tmp_path) == [f".a.partial-{DEAD}", "[ab]"]


def test_a_bundle_without_a_manifest_is_a_bug_of_the_writer(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="without a manifest"), staging.create(tmp_path / "bundle"):
        pass
    assert neighbours(tmp_path) == []


def test_a_part_is_as_large_as_its_files_or_as_what_of_them_is_its_own() -> None:
    file = File("model.pte", 100, "0" * 64)
    part = Part(("decoder",), "executorch", "8da4w", (file,), (), ())
    assert (part.size, dataclasses.replace(part, bytes=70).size) == (100, 70)
