"""Signatures against minisign's own: what it signed holds, and nothing else does."""

from __future__ import annotations

import base64
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call
from conftest import REPOSITORY

from edge.bundle import archive, hub_folder, signature, trusted_keys
from edge.bundle.manifest import MANIFEST, Bundle
from edge.bundle.signature import SIGNATURE, PublicKey, Signed
from edge.errors import BundleError, EngineError, UsageError
from edge.fetching import unpack

MADE = REPOSITORY / "tests" / "data" / "minisign"
KEY, OTHER = (signature.key_of(str(MADE / name)) for name in ("key.pub", "other.pub"))
ID = "5107169B9C17E850"  # as minisign says it in key.pub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MADE, tmp_path / "signed"))


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of trusted keys; the folder is there, and it is not yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("APPDATA", str(tmp_path / "config"))
    place = trusted_keys.place()
    place.parent.mkdir(parents=True)
    return place


def test_what_minisign_signed_holds(folder: Path) -> None:
    expected = Signed(ID, "timestamp:1764288000\tfile:manifest.json", trusted=True)
    assert signature.signed(folder, (OTHER, KEY)) == expected
    signature.require(folder, KEY)


def test_a_key_that_is_not_trusted_says_nothing(folder: Path) -> None:
    assert signature.signed(folder, (OTHER,)) == Signed(ID, "", trusted=False)
    with pytest.raises(BundleError, match=f"is signed by {ID}, and not by F721C2AB68EC898E"):
        signature.require(folder, OTHER)


def test_no_signature_is_none(folder: Path) -> None:
    (folder / SIGNATURE).unlink()
    assert signature.signed(folder, (KEY,)) is None
    with pytest.raises(BundleError, match="is signed by nobody, and not by"):
        signature.require(folder, KEY)


def test_another_manifest_is_refused(folder: Path) -> None:
    with (folder / MANIFEST).open("ab") as file:
        file.write(b" ")
    with pytest.raises(BundleError, match=f"is not what {ID} has signed"):
        signature.signed(folder, (KEY,))


def test_another_comment_is_refused(folder: Path) -> None:
    text = (folder / SIGNATURE).read_text()
    (folder / SIGNATURE).write_text(text.replace("timestamp:1764288000", "timestamp:1864288000"))
    with pytest.raises(BundleError, match="has signed"):
        signature.signed(folder, (KEY,))


def test_a_key_of_that_name_with_another_point_is_refused(folder: Path) -> None:
    with pytest.raises(BundleError, match="has signed"):
        signature.signed(folder, (PublicKey(KEY.id, OTHER.point),))
    assert signature.signed(folder, (PublicKey(KEY.id, OTHER.point), KEY))


def test_every_bit_counts(folder: Path) -> None:
    lines = (folder / SIGNATURE).read_text().splitlines()
    for line in (1, 3):
        content = bytearray(base64.b64decode(lines[line]))
        for at in range(10, len(content), 9):
            content[at] ^= 1 << at % 8
            changed = [*lines[:line], base64.b64encode(content).decode(), *lines[line + 1 :]]
            (folder / SIGNATURE).write_text("\n".join(changed))
            with pytest.raises(BundleError, match="has signed"):
                signature.signed(folder, (KEY,))
            content[at] ^= 1 << at % 8


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n\n\n",
        b"\xff" * 100,
        b"untrusted comment: \n!\ntrusted comment: \n!",
        b"untrusted comment: \nRUQ=\ntrusted comment: \nRUQ=",
        b"a" * 5000,
        (MADE / "legacy.minisig").read_bytes(),
        (MADE / "manifest.json.minisig").read_bytes() + b"more\n",
    ],
)
def test_what_is_no_signature_is_refused(folder: Path, content: bytes) -> None:
    (folder / SIGNATURE).write_bytes(content)
    with pytest.raises(BundleError, match="is no signature of minisign"):
        signature.signed(folder, (KEY,))


def test_a_signature_without_the_extra_is_not_believed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "edge.bundle.ed25519", None)
    monkeypatch.delattr("edge.bundle.ed25519", raising=False)
    with pytest.raises(EngineError) as caught:
        signature.signed(folder, (KEY,))
    assert caught.value.hint == "pip install 'edge-vlm[signatures]'"


@pytest.mark.parametrize("text", ["", "RWQ", "é", "no/such/file", base64.b64encode(b"Ed" + bytes(39)).decode()])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no public key"):
        signature.key_of(text)


def test_a_key_is_given_by_itself_or_by_its_file() -> None:
    line = (MADE / "key.pub").read_text().splitlines()[1]
    assert signature.key_of(line) == KEY == signature.key_of(str(MADE / "key.pub"))


def test_trusted_keys_are_what_minisign_writes(keys: Path) -> None:
    assert trusted_keys.read() == ()
    keys.write_text("# mine\n" + (MADE / "key.pub").read_text() + "\n" + (MADE / "other.pub").read_text())
    assert trusted_keys.read() == (KEY, OTHER)


def test_a_file_of_keys_that_holds_something_else_is_refused(keys: Path) -> None:
    keys.write_text("all\n")
    with pytest.raises(UsageError, match="trusted_keys cannot be read"):
        trusted_keys.read()


@pytest.mark.skipif(sys.platform == "win32", reason="below a user's profile nobody else may write")
def test_keys_that_others_may_write_are_not_believed(keys: Path) -> None:
    keys.write_text((MADE / "key.pub").read_text())
    keys.chmod(0o666)
    with pytest.raises(UsageError, match="others than you may write"):
        trusted_keys.read()
    keys.chmod(0o644)
    assert trusted_keys.read() == (KEY,)


# of bundles


@pytest.fixture
def signed_bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    """It has a signature beside it, of another manifest."""
    bundle = make_bundle()
    shutil.copy(MADE / SIGNATURE, bundle.path)
    return bundle


def test_an_archive_and_a_hub_folder_carry_it(signed_bundle: Bundle, tmp_path: Path) -> None:
    archive.package(signed_bundle, tmp_path / "a.zip")
    unpack.unpack(tmp_path / "a.zip", tmp_path / "unpacked")
    hub_folder.package(signed_bundle, tmp_path / "upload")
    for place in ("unpacked", "upload"):
        assert (tmp_path / place / SIGNATURE).read_bytes() == (MADE / SIGNATURE).read_bytes()


def test_a_forged_bundle_is_refused_by_every_command(signed_bundle: Bundle, keys: Path) -> None:
    said = call("inspect", signed_bundle.path)
    assert said.code == 0
    assert f"{ID}, which is not in" in " ".join(said.out.split())
    keys.write_text((MADE / "key.pub").read_text())
    for command in (["inspect"], ["verify"], ["package", "--zip", os.devnull], ["run", "--no-isolated"]):
        said = call(*command, signed_bundle.path)
        assert said.code == 1
        assert f"is not what {ID} has signed" in said.err


def test_a_bundle_that_must_be_signed_is(signed_bundle: Bundle) -> None:
    said = call("run", signed_bundle.path, "Hello", "--trusted-key", MADE / "other.pub")
    assert said.code == 1
    assert f"is signed by {ID}, and not by F721C2AB68EC898E" in said.err
