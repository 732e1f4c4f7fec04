"""Who may ask: keys, hosts and origins, checked before anything of a request is read."""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.server.errors import ApiError
from edge.server.replies import failure

OPEN = ("/", "/health", "/openapi.json")  # and the page's files: they say nothing of what is served
PAGE = "/page/"
_ALWAYS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_CORS = {
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Allow-Headers": "authorization, content-type",
    "Access-Control-Max-Age": "600",
}


class Guard:
    """Lets a request through to the app, or answers it itself.

    - A page of another site may not ask: `origins` are those that may, as `https://name[:port]`.
    - Without keys only names that are surely this machine's are taken as its Host: a foreign name that was pointed at
      it would make its page one of ours.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], origins: Collection[str]) -> None:
        self._app = app
        self._keys = [_digest(key) for key in keys]
        self._origins = frozenset(origins)
        own = socket.gethostname().lower()
        self._hosts = {"localhost", own, f"{own}.local"} | {urlsplit(origin).hostname or "" for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        allowed = headers.get("origin") if headers.get("origin") in self._origins else None

        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = MutableHeaders(scope=message)
                for name, value in _ALWAYS.items():
                    sent.setdefault(name, value)
                if self._origins:
                    sent.add_vary_header("Origin")
                if allowed is not None:
                    sent["Access-Control-Allow-Origin"] = allowed
            await send(message)

        try:
            self._check(scope, headers, allowed)
        except ApiError as error:
            await failure(error)(scope, receive, send_with)
            return
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            answer = failure(ApiError(403, "this origin may not ask")) if allowed is None else _preflight()
            await answer(scope, receive, send_with)
            return
        await self._app(scope, receive, send_with)

    def _check(self, scope: Scope, headers: Headers, allowed: str | None) -> None:
        host = headers.get("host", "")
        if not self._keys and not _is_ours(host, self._hosts):
            raise ApiError(
                421,
                f"the host {host[:80]!r} is not known; edge serve --allow-origin http://NAME, or --api-key",
                code="unknown_host",
            )
        origin = headers.get("origin")
        own = (f"http://{host}".lower(), f"https://{host}".lower())
        if origin is not None and allowed is None and origin.lower() not in own:
            raise ApiError(403, f"the origin {origin[:80]!r} may not ask; edge serve --allow-origin", code="origin")
        path = scope["path"]
        if scope["method"] == "OPTIONS" or not self._keys or path in OPEN or path.startswith(PAGE):
            return
        if not self._knows(headers):
            raise ApiError(
                401,
                "no valid API key; send Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _knows(self, headers: Mapping[str, str]) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip())
        # Every key is compared, and digests have one length: the time tells nothing.
        found = [hmac.compare_digest(given, known) for known in self._keys]
        return scheme.lower() == "bearer" and any(found)


def _digest(key: str) -> bytes:
    return sha256(key.encode("latin-1", "replace")).digest()


def _is_ours(host: str, names: Collection[str]) -> bool:
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if name in names:
        return True
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True  # a browser that has a number for a name was told it by its user


def _preflight() -> ASGIApp:
    from starlette.responses import Response

    return Response(status_code=204, headers=_CORS)
