"""The queue: bounded, fair, and left at once by whoever goes."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep

import pytest
from serving import Gate, Got, Served, asked, served

from edge.server.errors import ApiError
from edge.server.limits import Limits
from edge.server.work import WorkQueue

MESSAGES = asked("Why?")


@pytest.fixture
def queue() -> Iterator[WorkQueue]:
    made = WorkQueue(7)
    yield made
    made.close()


class Busy:
    """Work that goes on until it is let end."""

    def __init__(self, queue: WorkQueue, client: str = "busy") -> None:
        self.place = queue.enter(client)
        self.begun, self.end = threading.Event(), threading.Event()
        self.place.submit(self.run)
        assert self.begun.wait(10)

    def run(self) -> None:
        self.begun.set()
        assert self.end.wait(30)


def test_clients_take_turns(queue: WorkQueue) -> None:
    busy, order, done = Busy(queue), [], threading.Event()
    for name in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.enter(name[0]).submit(lambda name=name: order.append(name))
    queue.enter("z").submit(done.set)
    busy.end.set()
    assert done.wait(10)
    sleep(0.05)
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_beyond_the_bound_is_told_when_to_come_again(queue: WorkQueue) -> None:
    places = [queue.enter(client) for client in "abcdefgh"]
    assert queue.held == 8
    with pytest.raises(ApiError) as told:
        queue.enter("i")
    assert told.value.status == 429 and int(told.value.headers["Retry-After"]) >= 1
    places[0].leave()
    places[0].leave()
    assert queue.held == 7
    queue.enter("i").leave()


def test_one_client_leaves_places_for_others(queue: WorkQueue) -> None:
    for _ in range(6):
        queue.enter("greedy")
    with pytest.raises(ApiError, match="6 of them yours"):
        queue.enter("greedy")
    queue.enter("modest")


def test_who_left_is_not_run_and_who_began_cannot_withdraw(queue: WorkQueue) -> None:
    busy, ran, done = Busy(queue), [], threading.Event()
    gone, stays, other = queue.enter("a"), queue.enter("a"), queue.enter("b")
    for place in (gone, stays, other):
        place.submit(lambda place=place: ran.append(place))
    gone.leave()
    assert other.withdraw()
    assert not busy.place.withdraw()
    assert queue.waiting == 1
    queue.enter("z").submit(done.set)
    busy.end.set()
    assert done.wait(10)
    assert ran == [stays]
    gone.submit(lambda: ran.append(gone))
    assert queue.waiting == 0


def test_work_that_fails_ends_nothing(queue: WorkQueue) -> None:
    done = threading.Event()

    def fail() -> None:
        raise KeyError("no such thing")

    queue.enter("a").submit(fail)
    queue.enter("a").submit(done.set)
    assert done.wait(10)


def test_a_closed_queue_lets_nobody_in(queue: WorkQueue) -> None:
    place = queue.enter("a")
    queue.close()
    assert place.gone
    with pytest.raises(ApiError) as told:
        queue.enter("b")
    assert told.value.status == 503


def test_a_full_server_says_429(served_bundle: Path) -> None:
    with served(served_bundle, limits=Limits(waiting=3)) as server, ThreadPoolExecutor(8) as pool:
        gate = Gate(server, "tiny")
        flying = [pool.submit(server.chat, MESSAGES, max_tokens=4) for _ in range(3)]
        server.wait(lambda: server.service.queue.held == 3)
        got = server.chat(MESSAGES)
        assert (got.status, got.error["type"]) == (429, "rate_limit_error")
        assert int(got.headers["retry-after"]) >= 1
        gate.open()
        assert [found.result().status for found in flying] == [200] * 3
        assert server.chat(MESSAGES).status == 200
        assert server.service.queue.held == 0


def begun(server: Served, **fields: object) -> socket.socket:
    """A request on its way, whose connection the test holds."""
    body = json.dumps({"messages": MESSAGES, "max_tokens": 300, **fields}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_frees_the_decoder_within_a_token(served_bundle: Path, stream: bool) -> None:
    with served(served_bundle) as server:
        gate = Gate(server, "tiny")
        connection = begun(server, stream=stream)
        gate.open(3)
        server.wait(lambda: gate.tokens == 3)
        connection.close()
        server.wait(lambda: server.service.queue.held == 0)
        gate.open(1)
        with ThreadPoolExecutor(1) as pool:
            next_one = pool.submit(server.chat, MESSAGES, max_tokens=1)
            assert next_one.result(20).status == 200
        assert gate.tokens == 4
        assert 'status="499"' in server.get("/metrics").body.decode() or stream


def test_who_goes_while_waiting_is_never_run(served_bundle: Path) -> None:
    with served(served_bundle) as server, ThreadPoolExecutor(1) as pool:
        gate = Gate(server, "tiny")
        first = pool.submit(server.chat, MESSAGES, max_tokens=3)
        server.wait(lambda: server.service.queue.held == 1)
        connection = begun(server)
        server.wait(lambda: server.service.queue.waiting == 1)
        connection.close()
        server.wait(lambda: server.service.queue.held == 1)
        gate.open(2)
        assert first.result(60).status == 200
        assert gate.tokens == 2


def test_a_slow_reader_holds_up_nobody(served_bundle: Path) -> None:
    with served(served_bundle) as server:
        slow = begun(server, stream=True, logprobs=True, top_logprobs=20)
        got: Got = server.chat(MESSAGES, max_tokens=4)
        assert got.status == 200
        server.wait(lambda: server.service.queue.waiting == 0)
        response = http.client.HTTPResponse(slow)
        response.begin()
        assert response.read().rstrip().endswith(b"data: [DONE]")


def test_a_reader_who_never_reads_is_cut_off(served_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from uvicorn.protocols.http import flow_control

    async def never(self: object) -> None:
        await __import__("asyncio").sleep(60)

    with served(served_bundle, limits=Limits(stalled_seconds=0.2)) as server:
        monkeypatch.setattr(flow_control.FlowControl, "drain", never)
        monkeypatch.setattr(flow_control.FlowControl, "write_paused", True, raising=False)
        connection = begun(server, stream=True)
        server.wait(lambda: server.service.queue.held == 0)
        connection.close()


def test_what_was_accepted_is_answered_before_the_end(served_bundle: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        with served(served_bundle) as server:
            gate = Gate(server, "tiny")
            flying = [pool.submit(server.chat, MESSAGES, max_tokens=4) for _ in range(2)]
            server.wait(lambda: server.service.queue.held == 2)
            server.server.should_exit = True
            sleep(0.3)
            gate.open()
        assert [found.result().status for found in flying] == [200, 200]
