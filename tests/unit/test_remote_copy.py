"""What is sent to another machine, and what lies there afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FILES
from hypothesis import given
from hypothesis import strategies as st
from remotes import DOCTOR, Folder, Machine

from edge.bundle.manifest import MANIFEST, Bundle, File, describe
from edge.errors import BundleError, RemoteError
from edge.remote import copy as copying
from edge.remote.copy import BLOCK, Transfer, copy, missing, plan, store
from edge.remote.host import Host
from edge.remote.shell import Shell

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "ma'chine $(touch pwned)")


def visited(machine: Machine, *, before: str = ":", free: int = 1 << 40) -> Host:
    (machine.cache / "files").mkdir(parents=True, exist_ok=True)
    (machine.cache / "bundles").mkdir(exist_ok=True)
    return Host(Shell(Folder("there", machine, before)), str(machine.cache), free, "edge", DOCTOR)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[bytes]]:
    """The bytes that went over, by the file's name."""
    found: dict[str, list[bytes]] = {}
    chunks = copying._chunks

    def counted(one: Transfer, *rest: object) -> object:
        pieces = found.setdefault(one.entry.path, [])
        for chunk in chunks(one, *rest):  # type: ignore[arg-type]
            pieces.append(chunk)
            yield chunk

    monkeypatch.setattr(copying, "_chunks", counted)
    return found


def large(tmp_path: Path, count: int = 5 * BLOCK + 321) -> tuple[Path, File]:
    path = tmp_path / "large.bin"
    path.write_bytes(hashlib.shake_128(b"large").digest(count))
    return path, describe(tmp_path, path)


def test_a_bundle_gets_there_and_is_sent_once(
    make_bundle: MakeBundle, machine: Machine, sent: dict[str, list[bytes]]
) -> None:
    bundle, host, shares = make_bundle('it\'s a "bundle" $(id)'), visited(machine), []
    there = Path(copy(host, bundle, shares.append))
    assert there.name == 'it\'s a "bundle" $(id)'
    assert {p.name: p.read_bytes() for p in there.iterdir()} == FILES | {
        MANIFEST: (bundle.path / MANIFEST).read_bytes()
    }
    Bundle.open(there).check()
    assert sent.keys() == {*FILES, MANIFEST}
    assert shares[-1] == 1.0 and sorted(shares) == shares
    assert all(hashlib.sha256(content).hexdigest() == name for name, content in machine.stored().items())
    sent.clear()
    assert copy(host, bundle, shares.append) == str(there)
    assert sent == {}


def test_a_bundle_of_links_gets_there_as_files(make_bundle: MakeBundle, machine: Machine, tmp_path: Path) -> None:
    bundle = make_bundle("hub/snapshots/0123")
    blobs = tmp_path / "hub" / "blobs"
    blobs.mkdir()
    for path in (*FILES, MANIFEST):
        (bundle.path / path).rename(blobs / path)
        (bundle.path / path).symlink_to(f"../../blobs/{path}")
    there = Path(copy(visited(machine), Bundle.open(bundle.path), float))
    assert not any(path.is_symlink() for path in there.iterdir())
    assert {p.name: p.read_bytes() for p in there.iterdir()} == FILES | {MANIFEST: (blobs / MANIFEST).read_bytes()}


def test_only_what_has_changed_is_sent(make_bundle: MakeBundle, machine: Machine, sent: dict[str, list[bytes]]) -> None:
    host = visited(machine)
    first = copy(host, make_bundle(), float)
    bundle = make_bundle("changed")
    (bundle.path / "vision.onnx").write_bytes(b"another graph")
    manifest = json.loads((bundle.path / MANIFEST).read_text())
    manifest["parts"][0]["files"] = [vars(describe(bundle.path, bundle.path / "vision.onnx"))]
    (bundle.path / MANIFEST).write_text(json.dumps(manifest))
    sent.clear()
    second = copy(host, Bundle.open(bundle.path), float)
    assert sent.keys() == {"vision.onnx", MANIFEST}
    assert second != first
    Bundle.open(second).check()
    Bundle.open(first).check()


NAMES = [
    "a b",
    "it's",
    'say "hi"',
    "$(touch pwned)",
    "`touch pwned`",
    "-rf",
    "a;touch pwned",
    "é/ü ß/*",
    "a\\b",
]


def test_names_of_a_manifest_are_only_names(make_bundle: MakeBundle, machine: Machine, tmp_path: Path) -> None:
    bundle = make_bundle()
    manifest = json.loads((bundle.path / MANIFEST).read_text())
    for name in NAMES:
        path = bundle.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        manifest.setdefault("companions", []).append(
            vars(File(name, path.stat().st_size, hashlib.sha256(name.encode()).hexdigest()))
        )
    (bundle.path / MANIFEST).write_text(json.dumps(manifest))
    there = copy(visited(machine), Bundle.open(bundle.path), float)
    Bundle.open(there).check()
    assert {str(p.relative_to(there)) for p in Path(there).rglob("*") if p.is_file()} == {*NAMES, *FILES, MANIFEST}
    assert not list(tmp_path.rglob("pwned*")) and not Path("pwned").exists()


@pytest.mark.parametrize("sha", ["", "0" * 63, "0" * 64 + "\n", "../" * 21 + "x", "$(touch pwned)", "A" * 64])
def test_a_hash_that_is_none(make_bundle: MakeBundle, machine: Machine, sha: str) -> None:
    bundle = make_bundle()
    manifest = json.loads((bundle.path / MANIFEST).read_text())
    manifest["golden"]["sha256"] = sha
    (bundle.path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="is no sha256"):
        copy(visited(machine), Bundle.open(bundle.path), float)
    assert machine.stored() == {}


SHA = "0" * 64
SIZES = st.integers(0, 10 * BLOCK)


@given(size=SIZES, held=SIZES | st.none(), partial=SIZES | st.none())
def test_the_plan(size: int, held: int | None, partial: int | None) -> None:
    there = {SHA: held, f"{SHA}.partial": partial}
    transfers = plan([(Path("x"), File("x", size, SHA))], {name: n for name, n in there.items() if n is not None})
    if held == size:
        assert transfers == () and missing(transfers) == 0
        return
    (one,) = transfers
    assert one.offset % BLOCK == 0 and 0 <= one.offset <= size
    assert missing(transfers) == size - one.offset
    if partial is not None and partial <= size:
        assert 0 <= partial - one.offset < BLOCK


@pytest.mark.parametrize("held", [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 7, 5 * BLOCK + 321])
def test_a_file_goes_on_where_it_stopped(
    machine: Machine, tmp_path: Path, sent: dict[str, list[bytes]], held: int
) -> None:
    host, (path, entry) = visited(machine), large(tmp_path)
    (machine.cache / "files" / f"{entry.sha256}.partial").write_bytes(path.read_bytes()[:held])
    store(host, [(path, entry)], float)
    assert b"".join(sent["large.bin"]) == path.read_bytes()[held // BLOCK * BLOCK :]
    assert machine.stored() == {entry.sha256: path.read_bytes()}


@pytest.mark.parametrize("held", [b"x" * (2 * BLOCK), b"x" * (9 * BLOCK)])
def test_what_lies_there_and_is_not_the_files_begin(machine: Machine, tmp_path: Path, held: bytes) -> None:
    host, (path, entry) = visited(machine), large(tmp_path)
    (machine.cache / "files" / f"{entry.sha256}.partial").write_bytes(held)
    store(host, [(path, entry)], float)
    assert machine.stored() == {entry.sha256: path.read_bytes()}


def test_a_whole_file_of_another_size_is_replaced(machine: Machine, tmp_path: Path) -> None:
    host, (path, entry) = visited(machine), large(tmp_path)
    (machine.cache / "files" / entry.sha256).write_bytes(b"cut by a power failure")
    store(host, [(path, entry)], float)
    assert machine.stored() == {entry.sha256: path.read_bytes()}


def test_an_empty_file(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    entry = describe(tmp_path, tmp_path / "empty")
    store(visited(machine), [(tmp_path / "empty", entry)], float)
    assert machine.stored() == {entry.sha256: b""}


def test_a_file_that_is_not_what_the_manifest_says(machine: Machine, tmp_path: Path) -> None:
    path, entry = large(tmp_path)
    content = bytearray(path.read_bytes())
    content[17] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"large\.bin arrives with sha256 [0-9a-f]{12}…, expected"):
        store(visited(machine), [(path, entry)], float)
    assert machine.stored() == {}


def cutting(machine: Machine, *after: int) -> None:
    """A dd that loses the connection after so many blocks, once for each number."""
    real = "/bin/dd" if os.path.exists("/bin/dd") else "/usr/bin/dd"
    for number, blocks in enumerate(after):
        (machine.root / f"cut{number}").write_text(str(blocks))
    machine.script(
        "dd",
        f"""for cut in '{machine.root}'/cut*; do
  [ -f "$cut" ] || break
  blocks=$(cat "$cut"); rm "$cut"
  {real} "$@" count=$blocks iflag=fullblock 2>/dev/null
  kill -9 0
done
exec {real} "$@" """,
    )


def test_a_cut_connection_is_made_again_and_goes_on(tmp_path: Path, sent: dict[str, list[bytes]]) -> None:
    machine = Machine(tmp_path / "machine")
    host, (path, entry) = visited(machine), large(tmp_path, 40 * BLOCK)
    cutting(machine, 10, 20)
    store(host, [(path, entry)], float)
    assert machine.stored() == {entry.sha256: path.read_bytes()}
    assert b"".join(sent["large.bin"]).endswith(path.read_bytes()[30 * BLOCK :])
    assert len(b"".join(sent["large.bin"])) < 3 * entry.bytes


def test_a_connection_that_brings_nothing_is_not_made_for_ever(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "machine")
    host, (path, entry) = visited(machine), large(tmp_path)
    cutting(machine, 2, 0, 0, 0)
    with pytest.raises(RemoteError, match="lost"):
        store(host, [(path, entry)], float)
    assert len(list(machine.root.glob("cut*"))) == 2
    assert machine.stored() == {f"{entry.sha256}.partial": path.read_bytes()[: 2 * BLOCK]}


def test_no_room_is_said_before_a_byte_is_sent(machine: Machine, tmp_path: Path, sent: dict[str, list[bytes]]) -> None:
    host, file = visited(machine, free=1_000_000), large(tmp_path)
    with pytest.raises(RemoteError, match=r"no room: 328\.0 kB are to be copied, 1\.0 MB are free") as caught:
        store(host, [file], float)
    assert sent == {}
    assert "rm -r" in (caught.value.hint or "")


def test_nothing_to_copy_needs_no_room(machine: Machine, tmp_path: Path) -> None:
    file = large(tmp_path)
    store(visited(machine), [file], float)
    store(visited(machine, free=0), [file], float)


def test_a_disk_that_fills_up(machine: Machine, tmp_path: Path) -> None:
    limit = "trap '' XFSZ; ulimit -f 128"  # blocks of 512 bytes: dd hears that the file is too large
    with pytest.raises(RemoteError, match=r"there: cannot write large\.bin: .*File too large") as caught:
        store(visited(machine, before=limit), [large(tmp_path)], float)
    assert "rm -r" in (caught.value.hint or "")


@pytest.mark.parametrize("tool", ["sha256sum", "shasum", "python3", None])
def test_whatever_hashes_there(tmp_path: Path, tool: str | None) -> None:
    machine = Machine(tmp_path / "machine")
    host, (path, entry) = visited(machine), large(tmp_path)
    for name in ("sh", "rm", "mv", "dd", "wc", "echo", "cat", "touch"):
        (machine.bin / name).symlink_to(str(shutil.which(name)))
    if tool == "shasum":  # macOS's
        machine.script("shasum", f'[ "$*" = "-a 256" ] && exec {shutil.which("sha256sum")}')
    elif tool == "python3":
        machine.script("python3", f'exec {sys.executable} "$@"')
    elif tool is not None:
        (machine.bin / tool).symlink_to(str(shutil.which(tool)))
    machine.environment["PATH"] = str(machine.bin)
    if tool is None:
        with pytest.raises(RemoteError, match="nothing there can hash"):
            store(host, [(path, entry)], float)
    else:
        store(host, [(path, entry)], float)
        assert machine.stored() == {entry.sha256: path.read_bytes()}


def test_without_hard_links_the_bundle_is_copied(make_bundle: MakeBundle, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "machine")
    machine.script("ln", "echo 'ln: Permission denied' >&2; exit 1")
    there = Path(copy(visited(machine), make_bundle(), float))
    Bundle.open(there).check()
    assert (there / "vision.onnx").stat().st_nlink == 1


def test_a_bundle_that_lost_a_file_there_is_put_together_again(make_bundle: MakeBundle, machine: Machine) -> None:
    host, bundle = visited(machine), make_bundle()
    there = Path(copy(host, bundle, float))
    (there / "vision.onnx").unlink()
    assert copy(host, bundle, float) == str(there)
    Bundle.open(there).check()


@pytest.mark.parametrize("links", [True, False])
def test_what_was_damaged_there_is_sent_again(make_bundle: MakeBundle, tmp_path: Path, links: bool) -> None:
    machine = Machine(tmp_path / "machine")
    if not links:
        machine.script("ln", "exit 1")
    host, bundle = visited(machine), make_bundle()
    there = Path(copy(host, bundle, float))
    for path in (there / "vision.onnx", machine.cache / "files" / bundle.manifest.part("decoder").files[1].sha256):
        path.write_bytes(b"x" * path.stat().st_size)
    assert copy(host, bundle, float) == str(there)
    Bundle.open(there).check()
    assert machine.stored()[bundle.manifest.part("decoder").files[1].sha256] == bytes(range(256))
