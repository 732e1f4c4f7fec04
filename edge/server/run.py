"""Opens bundles and serves them until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from edge.devices import detect
from edge.errors import UsageError
from edge.inference.session import Session
from edge.server.app import create
from edge.server.benchmarks import Measure
from edge.server.fetch import Fetcher
from edge.server.http import bounded
from edge.server.limits import Limits
from edge.server.models import Model
from edge.server.service import Service

_MOST_KEPT = 1 << 30
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Settings:
    host: str = "127.0.0.1"
    port: int = 8080  # 0: any that is free
    keys: tuple[str, ...] = ()
    no_key: bool = False
    origins: tuple[str, ...] = ()
    allow_urls: bool = False
    cert: Path | None = None
    key: Path | None = None
    kept_bytes: int | None = None  # for conversations that wait; None: what the memory leaves
    limits: Limits = field(default_factory=Limits)

    def check(self) -> None:
        """Raises UsageError on what would be unsafe, or cannot be."""
        if self.host not in LOOPBACK and not self.keys and not self.no_key:
            raise UsageError(
                f"{self.host} is reached from other machines, and there is no key",
                hint="--api-key KEY (or EDGE_API_KEY), or --no-key if everybody may ask",
            )
        if self.keys and self.no_key:
            raise UsageError("--api-key and --no-key exclude each other", hint="leave one away")
        for key in self.keys:
            if len(key) < 8 or not (key.isascii() and key.isprintable()) or " " in key:
                raise UsageError(
                    "an API key is 8 or more printable ASCII characters without spaces",
                    hint="python -c 'import secrets; print(secrets.token_urlsafe())'",
                )
        for origin in self.origins:
            scheme, _, rest = origin.partition("://")
            if scheme not in ("http", "https") or not rest or "/" in rest or "*" in rest:
                raise UsageError(f"{origin!r} is no origin", hint="--allow-origin https://NAME or https://NAME:PORT")
        if (self.cert is None) != (self.key is None):
            raise UsageError("TLS needs a certificate and its key", hint="--cert FILE --key FILE")


def serve(
    sessions: Sequence[tuple[str, Session]], settings: Settings, measure: Measure, ready: Callable[[str], None]
) -> None:
    """Answers until SIGTERM or Ctrl-C; then what was accepted is answered first. `ready` is told the address.

    Raises UsageError when the address cannot be had, or the certificate cannot be read.
    """
    settings.check()
    _check_certificate(settings)
    kept = _kept_bytes(sessions) if settings.kept_bytes is None else settings.kept_bytes
    models = {name: Model(name, session, kept // len(sessions)) for name, session in sessions}
    listener = listen(settings)
    service = Service(models, settings.limits, Fetcher(settings.limits) if settings.allow_urls else None)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    ready(f"http{'s' if settings.cert else ''}://{shown}:{port}")
    app = create(service, measure, keys=settings.keys, origins=settings.origins)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    with _signals_end_well():
        asyncio.run(uvicorn.Server(configuration(app, settings)).serve(sockets=[listener]))


def configuration(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=bounded(settings.limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=settings.limits.drain_seconds,
        ssl_certfile=settings.cert,
        ssl_keyfile=settings.key,
    )


def _kept_bytes(sessions: Sequence[tuple[str, Session]]) -> int:
    """A quarter of what the system leaves when all is open; nothing where the models had to make do with less."""
    if any(session.plan.given_up for _, session in sessions):
        return 0
    return min(detect().memory_bytes // 4, _MOST_KEPT)


def listen(settings: Settings) -> socket.socket:
    """Raises UsageError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sends small answers at once (TCP_NODELAY) where a socket says that it is TCP: 40 ms a request otherwise.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(512)
    except (OSError, OverflowError) as error:
        listener.close()
        raise UsageError(
            f"cannot listen on {settings.host} port {settings.port}: {error}", hint="--host ADDRESS --port NUMBER"
        ) from error
    return listener


def _check_certificate(settings: Settings) -> None:
    if settings.cert is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.cert, settings.key)
    except OSError as error:  # an SSLError is one
        raise UsageError(
            f"the certificate {settings.cert} with its key {settings.key} cannot be used: {error}",
            hint="--cert FILE --key FILE, both PEM",
        ) from error


@contextmanager
def _signals_end_well() -> Iterator[None]:
    """uvicorn raises the signal that ended it once more when all is done: that is no failure."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
