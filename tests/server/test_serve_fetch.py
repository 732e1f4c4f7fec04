"""Fetching pictures: within size, time and redirects, and never from an address that is not public."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from serving import asked, photo, served

from edge.server.errors import ApiError
from edge.server.fetch import Fetcher, is_public, resolve
from edge.server.limits import Limits

LIMITS = Limits(fetch_bytes=5000, fetch_seconds=0.6, fetch_redirects=2)


class Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind, _, rest = self.path.strip("/").partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", f"/{rest}" if "://" not in rest else rest)
            self.end_headers()
            return
        if kind == "none":
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        if kind == "slow":
            for _ in range(30):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
        else:
            self.wfile.write(photo() if kind == "photo" else b"x" * int(rest))

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://pictures.example:{server.server_port}"
    server.shutdown()


def here(host: str, port: int) -> list[str]:
    """Every name is this machine."""
    return ["127.0.0.1"]


FETCH = Fetcher(LIMITS, here, lambda address: address == "127.0.0.1")


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1"),
        *("::1", "::", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "2002:a00:1::", "64:ff9b::7f00:1", "64:ff9b::a00:1"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


def test_addresses_that_are() -> None:
    for address in ("93.184.216.34", "2606:4700::1111", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"):
        assert is_public(address)


def test_a_picture(site: str) -> None:
    assert FETCH(f"{site}/photo") == photo()
    assert FETCH(f"{site}/to/photo") == FETCH(f"{site}/to/to/photo") == photo()


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/to/to/to/photo", "more than 2 redirects"),
        ("/none", "404"),
        ("/size/5001", "5,000 bytes"),
        ("/slow", "too long"),
        ("/to/file:///etc/passwd", "only plain http"),
    ],
)
def test_what_is_not_fetched(site: str, path: str, why: str) -> None:
    started = time.monotonic()
    with pytest.raises(ApiError, match=why):
        FETCH(site + path)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "url", ["http://", "http://a b/", "http://a:99999/", "http://user:secret@a/", "https://[::1", "http://a\r\nX: y/"]
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ApiError):
        Fetcher(LIMITS, lambda host, port: ["93.184.216.34"], lambda address: False)(url)


def test_a_name_of_a_private_address_is_not_asked(site: str) -> None:
    for found in (["127.0.0.1"], ["93.184.216.34", "127.0.0.1"], []):
        with pytest.raises(ApiError, match="not public"):
            Fetcher(LIMITS, lambda host, port, found=found: found)(f"{site}/photo")


def test_a_redirect_to_a_private_address_is_not_followed(site: str) -> None:
    def find(host: str, port: int) -> list[str]:
        return ["127.0.0.1"] if host == "pictures.example" else ["10.0.0.1"]

    with pytest.raises(ApiError, match="not public"):
        Fetcher(LIMITS, find, lambda address: address == "127.0.0.1")(f"{site}/to/http://inner.example/photo")


def test_names_are_resolved_by_the_system() -> None:
    assert "127.0.0.1" in resolve("localhost", 80) or "::1" in resolve("localhost", 80)


def test_a_request_with_a_url(site: str, served_bundle: Path) -> None:
    message = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": f"{site}/photo"}}]}]
    message[0]["content"].append({"type": "text", "text": "Why?"})  # type: ignore[attr-defined]
    with served(served_bundle, fetch=FETCH) as server:
        by_url = server.chat(message).json["choices"]
        assert by_url == server.chat(asked("Why?", photo())).json["choices"]
        message[0]["content"][0]["image_url"]["url"] = f"{site}/none"  # type: ignore[index]
        got = server.chat(message)
        assert (got.status, got.error["code"]) == (400, "image_fetch_failed")
    with served(served_bundle) as server:
        assert server.chat(message).error["code"] == "urls_not_allowed"
