"""Ed25519 (RFC 8032) by `cryptography` (the extra `signatures`). Imported only where a signature is checked."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def signed(point: bytes, signature: bytes, content: bytes) -> bool:
    """Whether the holder of the key whose public point (32 bytes) this is signed the content."""
    try:
        Ed25519PublicKey.from_public_bytes(point).verify(signature, content)
    except (InvalidSignature, ValueError):
        return False
    return True
