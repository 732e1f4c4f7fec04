"""Signature of a bundle (`manifest.json.minisig`): minisign's, of the manifest, which has all other files' sha256.

Format: https://jedisct1.github.io/minisign/#signature-format; Ed25519 (RFC 8032) of the BLAKE2b-512 of the file. It is
made by minisign itself (`minisign -S -m manifest.json`), and only checked here, with `cryptography` (extra
`signatures`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.bundle.manifest import MANIFEST
from edge.errors import BundleError, EngineError, UsageError

SUFFIX = ".minisig"  # behind the name of what is signed
SIGNATURE = MANIFEST + SUFFIX
MOST_BYTES = 1 << 12  # of a file of it, or of a key
_KEY, _HASHED = b"Ed", b"ED"  # a public key, and a signature of a file's hash; older ones are of the file itself
_UNTRUSTED, _TRUSTED = "untrusted comment:", "trusted comment: "
_HINT = "do not use this bundle; ask whoever gave it for another"


@dataclass(frozen=True)
class PublicKey:
    id: bytes  # 8
    point: bytes  # 32, of Ed25519

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """One line of Base64, as minisign prints it. Raises ValueError."""
        content = base64.b64decode(text.strip(), validate=True)
        if len(content) != 42 or content[:2] != _KEY:
            raise ValueError(f"{text.strip()[:60]!r} is not one of minisign")
        return cls(content[2:10], content[10:])

    @property
    def name(self) -> str:
        return key_name(self.id)


@dataclass(frozen=True)
class Signed:
    key: str  # as minisign names it
    comment: str  # the trusted comment; empty where nobody could check it
    trusted: bool  # it is good, and by a trusted key


def key_name(id: bytes) -> str:
    return f"{int.from_bytes(id, 'little'):016X}"


def signed(folder: Path, keys: Sequence[PublicKey], name: str = MANIFEST) -> Signed | None:
    """Who signed a bundle's manifest, or another file of this name; None: nobody. Raises BundleError on a signature
    that is damaged, or is not one of this file by the key that it names, and EngineError where that cannot be checked
    for want of the extra."""
    place = folder / (name + SUFFIX)
    if not place.is_file():
        return None
    try:
        if place.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        id, signature, comment, whole = _parsed(place.read_text(encoding="utf-8"))
        content = (folder / name).read_bytes()
    except (OSError, ValueError, binascii.Error) as error:
        raise BundleError(f"{place} is no signature of minisign: {error}", hint=_HINT) from error
    matching = [key for key in keys if key.id == id]
    if not matching:
        return Signed(key_name(id), "", trusted=False)
    if not any(_good(key, content, signature, comment, whole) for key in matching):
        raise BundleError(
            f"{folder / name} is not what {key_name(id)} has signed: the signature beside it is wrong", hint=_HINT
        )
    return Signed(key_name(id), comment, trusted=True)


def require(folder: Path, key: PublicKey) -> None:
    """Raises BundleError where a bundle is not signed by this key."""
    if (found := signed(folder, (key,))) is None or not found.trusted:
        by = "nobody" if found is None else f"{found.key}"
        raise BundleError(f"{folder} is signed by {by}, and not by {key.name}", hint=_HINT)


def _parsed(text: str) -> tuple[bytes, bytes, str, bytes]:
    """Key's id, signature, trusted comment, and the signature of both. Raises ValueError."""
    lines = [line.rstrip("\r") for line in text.rstrip("\n").split("\n")]
    if len(lines) != 4 or not lines[0].startswith(_UNTRUSTED) or not lines[2].startswith(_TRUSTED):
        raise ValueError("it has not the four lines of one")
    first, whole = (base64.b64decode(line, validate=True) for line in (lines[1], lines[3]))
    if len(first) != 74 or len(whole) != 64 or first[:2] != _HASHED:
        raise ValueError("it is not of the kind that minisign -S makes")
    return first[2:10], first[10:], lines[2].removeprefix(_TRUSTED), whole


def _good(key: PublicKey, content: bytes, signature: bytes, comment: str, whole: bytes) -> bool:
    try:
        from edge.bundle import ed25519
    except ImportError as error:
        raise EngineError(
            f"the bundle is signed by {key.name}, and to check that needs more than is installed: {error}",
            hint="pip install 'edge-vlm[signatures]'",
        ) from error
    hashed = hashlib.blake2b(content).digest()
    return ed25519.signed(key.point, signature, hashed) and ed25519.signed(
        key.point, whole, signature + comment.encode()
    )


def key_of(text: str) -> PublicKey:
    """A public key as a user gives it: itself, or the file that holds it. Raises UsageError."""
    try:
        keys = read_keys(Path(text)) if Path(text).is_file() else (PublicKey.parse(text),)
        if len(keys) == 1:
            return keys[0]
        raise ValueError(f"the file holds {len(keys)} keys")
    except (OSError, ValueError, binascii.Error) as error:
        raise UsageError(f"{text!r} is no public key: {error}", hint="minisign.pub, or its second line") from error


def read_keys(file: Path) -> tuple[PublicKey, ...]:
    """One a line; comments, as minisign writes them, and empty lines between. Raises OSError and ValueError."""
    with file.open("rb") as opened:
        content = opened.read(1 << 20).decode()
    lines = [line.strip() for line in content.splitlines()]
    return tuple(PublicKey.parse(line) for line in lines if line and not line.startswith(("#", _UNTRUSTED)))
