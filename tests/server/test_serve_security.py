"""Who may ask: keys, hosts, origins; and what a server refuses to be."""

from __future__ import annotations

import dataclasses
import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Served, asked, served

from edge.errors import UsageError
from edge.server.run import Settings, serve

KEY, OTHER = "correct-horse-battery", "staple-staple-staple"
CHAT = "/v1/chat/completions"
BODY = {"messages": asked("Why?"), "max_tokens": 2}


@pytest.fixture(scope="module")
def locked(served_bundle: Path) -> Iterator[Served]:
    with served(served_bundle, keys=(KEY, OTHER), origins=("https://home.example:8443",)) as found:
        yield found


def test_every_key_opens(locked: Served) -> None:
    for key in (KEY, OTHER):
        assert locked.post(CHAT, BODY, authorization=f"Bearer {key}").status == 200
        assert locked.get("/v1/models", authorization=f"bearer  {key}").status == 200


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer \xff\xfe"]
)
def test_without_one_nothing_is_told(locked: Served, given: str) -> None:
    for method, path in (
        ("POST", CHAT),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("POST", "/v1/frames"),
        ("POST", "/v1/benchmarks"),
        ("POST", "/v1/responses"),
        ("GET", "/nothing"),
    ):
        got = locked.request(method, path, BODY if method == "POST" else None, authorization=given)
        assert (got.status, got.error["code"]) == (401, "invalid_api_key")
        assert got.headers["www-authenticate"] == "Bearer"


def test_the_page_and_health_need_none(locked: Served) -> None:
    for path in ("/", "/health", "/openapi.json", "/page/app.js"):
        assert locked.get(path).status == 200


def test_the_key_is_asked_for_before_the_body_is_read(locked: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", locked.port, timeout=10)
    connection.putrequest("POST", CHAT)
    connection.putheader("Content-Length", "30000000")
    connection.endheaders()
    assert connection.getresponse().status == 401


def test_pages_of_other_sites_may_not_ask(server: Served, locked: Served) -> None:
    got = server.post(CHAT, BODY, origin="http://evil.example")
    assert (got.status, "access-control-allow-origin" in got.headers) == (403, False)
    for origin in ("null", "http://127.0.0.1:1", "https://home.example", "http://[", ""):
        assert server.post(CHAT, BODY, origin=origin).status == 403
    assert server.post(CHAT, BODY, origin=f"http://127.0.0.1:{server.port}").status == 200
    preflight = {"access_control_request_method": "POST", "access_control_request_headers": "content-type"}
    got = server.request("OPTIONS", CHAT, origin="http://evil.example", **preflight)
    assert got.status == 403 and "access-control-allow-methods" not in got.headers
    good = "https://home.example:8443"
    got = locked.request("OPTIONS", CHAT, origin=good, **preflight)
    assert (got.status, got.headers["access-control-allow-origin"]) == (204, good)
    assert "authorization" in got.headers["access-control-allow-headers"]
    assert got.headers["vary"] == "Origin"
    got = locked.post(CHAT, BODY, origin=good, authorization=f"Bearer {KEY}")
    assert (got.status, got.headers["access-control-allow-origin"]) == (200, good)
    assert locked.post(CHAT, BODY, origin=good).headers["access-control-allow-origin"] == good  # the 401 is readable


def test_a_foreign_name_is_no_host_of_ours_without_a_key(server: Served, served_bundle: Path) -> None:
    """DNS rebinding: a foreign page's own name was pointed at this machine."""
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "[::1", "a b"):
        assert server.get("/v1/models", host=host).status in (400, 421)
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1:9", "[::1]:9", "192.168.0.7", "localhost."):
        assert server.get("/v1/models", host=host).status == 200
    with served(served_bundle, origins=("https://home.example",)) as known:
        assert known.get("/v1/models", host="home.example").status == 200
    with served(served_bundle, keys=(KEY,)) as keyed:
        assert keyed.get("/v1/models", host="home.example", authorization=f"Bearer {KEY}").status == 200


def test_every_answer_forbids_what_a_page_does_not_need(server: Served) -> None:
    for path in ("/", "/v1/models", "/nothing"):
        headers = server.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert "server" not in headers


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        (Settings(host="0.0.0.0"), "--api-key"),
        (Settings(host="192.168.0.7"), "--no-key"),
        (Settings(host="::"), "--api-key"),
        (Settings(keys=(KEY,), no_key=True), "leave one away"),
        (Settings(keys=("",)), "secrets"),
        (Settings(keys=("short",)), "secrets"),
        (Settings(keys=("with a space in it",)), "secrets"),
        (Settings(keys=("schlüsselchen",)), "secrets"),
        (Settings(origins=("*",)), "--allow-origin"),
        (Settings(origins=("https://*.example",)), "--allow-origin"),
        (Settings(origins=("https://home.example/page",)), "--allow-origin"),
        (Settings(cert=Path("cert.pem")), "--key"),
    ],
)
def test_what_would_be_unsafe_is_refused(settings: Settings, hint: str) -> None:
    with pytest.raises(UsageError) as told:
        settings.check()
    assert hint in str(told.value.hint)


def test_what_is_safe_is_not() -> None:
    for settings in (Settings(), Settings(host="0.0.0.0", keys=(KEY,)), Settings(host="::", no_key=True)):
        settings.check()


def test_an_address_or_certificate_that_cannot_be_had(server: Served, tmp_path: Path) -> None:
    from serving import nothing

    (tmp_path / "cert.pem").write_text("no certificate")
    taken = Settings(port=server.port)
    for settings in (
        taken,
        dataclasses.replace(taken, host="256.1.1.1", no_key=True),
        Settings(port=0, cert=tmp_path / "cert.pem", key=tmp_path / "cert.pem"),
        Settings(port=0, cert=tmp_path / "none.pem", key=tmp_path / "none.pem"),
    ):
        with pytest.raises(UsageError, match="cannot"):
            serve([], dataclasses.replace(settings, kept_bytes=0), nothing, print)
