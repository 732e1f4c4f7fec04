"""Connections that are slow, broken or too many: each is told so, and the others are answered."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
from serving import Served, asked, served

from edge.server.limits import Limits

QUICK = Limits(head_seconds=0.4, body_seconds=0.4, connections=12, body_bytes=50_000, bodies_bytes=80_000)
BODY = json.dumps({"messages": asked("Why?"), "max_tokens": 2}).encode()


@pytest.fixture(scope="module")
def quick(served_bundle: Path) -> Iterator[Served]:
    with served(served_bundle, limits=QUICK) as found:
        yield found


def opened(server: Served, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.sendall(data)
    return connection


def post(length: int, *more: str) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json", *more]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def read(connection: socket.socket) -> bytes:
    """All until the server closes."""
    found = b""
    try:
        while data := connection.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    connection.close()
    return found


def told(answer: bytes) -> tuple[int, str]:
    """Status and code of an error's object, in one answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def alive(server: Served) -> bool:
    return server.get("/health").status == 200


@pytest.mark.parametrize("begun", [b"", b"POST /v1/chat", b"GET / HTTP/1.1\r\nHost: local"])
def test_a_head_that_does_not_come(quick: Served, begun: bytes) -> None:
    assert told(read(opened(quick, begun))) == (408, "timeout")


def test_a_head_of_a_byte_now_and_then(quick: Served) -> None:
    connection, started = opened(quick), monotonic()
    connection.settimeout(0.05)
    answer = b""
    for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 1000:
        try:
            connection.sendall(bytes([byte]))
            answer = connection.recv(1000)
            break
        except TimeoutError:
            continue
    connection.settimeout(5)
    assert told(answer + read(connection)) == (408, "timeout")  # its head and its body may come one by one
    assert monotonic() - started < 5


def test_the_second_head_on_a_connection_has_a_deadline_too(quick: Served) -> None:
    connection = opened(quick, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    found = b""
    while not found.endswith(b"}"):  # its head and its body may come one by one
        found += connection.recv(65536)
    assert b"200 OK" in found
    connection.sendall(b"GET /hea")
    assert told(read(connection)) == (408, "timeout")


def test_a_body_that_does_not_come(quick: Served) -> None:
    assert told(read(opened(quick, post(1000, "Connection: close") + b'{"mess'))) == (408, "timeout")
    assert quick.service.queue.held == 0


def test_half_a_request_is_left(quick: Served) -> None:
    connection = opened(quick, post(1000) + b'{"mess')
    quick.wait(lambda: quick.service.queue.held == 1)
    connection.close()
    quick.wait(lambda: quick.service.queue.held == 0)
    assert quick.service.bodies.held == 0


@pytest.mark.parametrize("length", [True, False], ids=["told", "untold"])
def test_a_body_that_is_too_large(quick: Served, length: bool) -> None:
    size = QUICK.body_bytes + 1
    head = post(size) if length else post(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    body = b"" if length else f"{size:x}\r\n".encode() + b" " * size + b"\r\n0\r\n\r\n"
    head = head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
    assert told(read(opened(quick, head + body))) == (413, "too_large")
    assert quick.service.bodies.held == 0


def test_too_much_at_once(quick: Served) -> None:
    half = [opened(quick, post(45_000) + b" " * 39_000) for _ in range(2)]
    quick.wait(lambda: quick.service.bodies.held == 78_000)
    assert quick.request("POST", "/v1/chat/completions", b" " * 3000).status == 429
    for connection in half:
        connection.close()
    quick.wait(lambda: quick.service.bodies.held == 0)
    assert quick.request("POST", "/v1/chat/completions", BODY).status == 200


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000,
    ],
)
def test_what_is_no_request(quick: Served, garbage: bytes) -> None:
    assert told(read(opened(quick, garbage))) == (400, "invalid_http")


def test_garbage_behind_a_request(quick: Served) -> None:
    """Pipelined: the request is answered, and what follows is refused."""
    answer = read(opened(quick, post(len(BODY)) + BODY + b"\x00\x01garbage\r\n\r\n"))
    first, _, second = answer.partition(b"}HTTP/1.1 ")
    assert b"200 OK" in first and b'"chat.completion"' in first
    assert second.startswith(b"400 ") and b"invalid_http" in second


def test_garbage_inside_a_chunked_body(quick: Served) -> None:
    head = post(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    assert told(read(opened(quick, head + b"zz\r\n")))[0] == 400
    quick.wait(lambda: quick.service.queue.held == 0)
    assert alive(quick)


def test_more_connections_than_there_may_be(quick: Served) -> None:
    many = [opened(quick) for _ in range(QUICK.connections)]
    assert told(read(opened(quick))) == (503, None)
    for connection in many:
        connection.close()
    quick.wait(lambda: len(quick.server.server_state.connections) == 0)
    assert alive(quick)


def test_a_hundred_that_send_a_byte_a_second_block_nobody(served_bundle: Path) -> None:
    with served(served_bundle) as server:
        slow = [opened(server, b"P") for _ in range(100)]
        for connection in slow:
            connection.sendall(b"O")
        assert server.request("POST", "/v1/chat/completions", BODY).status == 200
        for connection in slow:
            connection.close()


def test_websockets_are_not_spoken(quick: Served) -> None:
    ask = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    assert b"200 OK" in read(opened(quick, ask)).partition(b"\r\n")[0]
