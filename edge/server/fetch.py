"""Fetches a picture by http(s): within size, time and redirects, and never from a private address.

The name is resolved once and the connection goes to the address that was checked, so that a name cannot mean another
machine by then. Proxies of the environment are not asked.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from edge.server.errors import ApiError
from edge.server.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 65_536
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]


def resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(text: str) -> bool:
    """Whether an address, or the one that it stands for, is of the public internet."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            address = inner
    return address.is_global and not address.is_multicast


class Fetcher:
    def __init__(self, limits: Limits, find: Resolve = resolve, allowed: Callable[[str], bool] = is_public) -> None:
        self._limits = limits
        self._find = find
        self._allowed = allowed

    def __call__(self, url: str) -> bytes:
        """The body. Raises ApiError."""
        until = monotonic() + self._limits.fetch_seconds
        try:
            for _ in range(self._limits.fetch_redirects + 1):
                body, then = self._get(url, until)
                if then is None:
                    return body
                url = then
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = "it took too long" if monotonic() >= until else type(error).__name__
            raise _failed(f"{reason}") from error
        raise _failed(f"more than {self._limits.fetch_redirects} redirects")

    def _get(self, url: str, until: float) -> tuple[bytes, str | None]:
        """The body, or where it is instead."""
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise _failed("only plain http and https URLs are fetched")
        port = parts.port or (443 if secure else 80)
        connection = _Connection(parts.hostname, port, self._address(parts.hostname, port), secure, until)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        with connection.bounded():
            connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "edge-vlm"})
            response = connection.getresponse()
            if response.status in (301, 302, 303, 307, 308) and (then := response.headers.get("Location")):
                return b"", urljoin(url, then)
            if response.status != 200:
                raise _failed(f"status {response.status}")
            body = self._body(response)
            if monotonic() >= until:  # it was cut, and may look whole
                raise TimeoutError
            return body, None

    def _address(self, host: str, port: int) -> str:
        addresses = self._find(host, port)
        if not addresses or not all(map(self._allowed, addresses)):
            raise _failed("its address is not public")
        return addresses[0]

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        found = bytearray()
        while chunk := response.read(_CHUNK):
            found += chunk
            if len(found) > self._limits.fetch_bytes:
                raise _failed(f"more than {self._limits.fetch_bytes:,} bytes")
        return bytes(found)


class _Connection(http.client.HTTPConnection):
    """To an address that is settled; the name is for the certificate and the Host header."""

    def __init__(self, host: str, port: int, address: str, secure: bool, until: float) -> None:
        super().__init__(host, port)
        self._address = address
        self._secure = secure
        self._until = until

    def connect(self) -> None:
        sock = socket.create_connection((self._address, self.port), timeout=max(0.01, self._until - monotonic()))
        self.sock = sock
        if self._secure:
            self.sock = ssl.create_default_context().wrap_socket(sock, server_hostname=self.host)

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """A peer that sends a byte now and then keeps every timeout of a socket: its connection is cut."""
        timer = threading.Timer(max(0.01, self._until - monotonic()), self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self.close()

    def _cut(self) -> None:
        sock: socket.socket | None = self.sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it ended by itself


def _failed(why: str) -> ApiError:
    return ApiError(400, f"the image's URL could not be fetched: {why}", code="image_fetch_failed")
