"""How much a client may ask of the server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    waiting: int = 32  # requests that are not yet answered, beside the one that is
    body_bytes: int = 32_000_000
    bodies_bytes: int = 128_000_000  # of all requests that are not yet answered
    pixels: int = 50_000_000  # of one picture
    pictures: int = 8  # of one request
    text_per_position: int = 32  # characters, for each position of the context: longer is not even tokenised
    messages: int = 1000
    stops: int = 4
    default_tokens: int = 512  # of an answer, where the request says nothing
    cameras: int = 64  # whose frames are told apart
    connections: int = 256
    head_seconds: float = 15.0  # for a request's first line and headers
    body_seconds: float = 15.0  # for a body, and more for each so many bytes:
    body_rate: float = 16_384.0  # bytes a second
    stalled_seconds: float = 60.0  # until a reader who does not read is cut off
    drain_seconds: int = 30  # after SIGTERM, for what was accepted
    fetch_bytes: int = 20_000_000  # of a picture that the server fetches
    fetch_seconds: float = 10.0
    fetch_redirects: int = 3
