"""Signatures as minisign makes them, with a key of the tests' own, which a test may trust."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge.bundle import trusted_keys
from edge.bundle.manifest import MANIFEST
from edge.bundle.signature import SUFFIX, PublicKey

SECRET = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = PublicKey(b"8 bytes!", SECRET.public_key().public_bytes_raw())


def sign(folder: Path, name: str = MANIFEST) -> None:
    """As minisign does."""
    signature = SECRET.sign(hashlib.blake2b((folder / name).read_bytes()).digest())
    whole = SECRET.sign(signature + b"a test")
    first, last = (base64.b64encode(part).decode() for part in (b"ED" + KEY.id + signature, whole))
    (folder / (name + SUFFIX)).write_text(f"untrusted comment: \n{first}\ntrusted comment: a test\n{last}\n")


def trust() -> None:
    place = trusted_keys.place()
    place.parent.mkdir(parents=True)
    place.write_text(base64.b64encode(b"Ed" + KEY.id + KEY.point).decode() + "\n")
