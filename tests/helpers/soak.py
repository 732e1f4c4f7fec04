"""Many clients at a server of the demo, some of whom go: the answers of the others, memory and slots are looked at."""

from __future__ import annotations

import http.client
import json
import random
import re
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from serving import uri

import edge
from exporters.demo.heldout import items

_LATE = 1800  # seconds for an answer: a busy machine stops us for minutes


@dataclass(frozen=True)
class Question:
    body: dict[str, Any]
    text: str  # what `edge run` says
    tokens: tuple[bytes, ...]


@dataclass
class Found:
    right: int = 0
    wrong: list[str] = field(default_factory=list)
    cut: int = 0
    again: int = 0  # that were told to come again, and did
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)  # bytes, after each fifth of the requests
    held: int = -1  # slots, at the end

    @property
    def growth(self) -> float:
        """Of the memory, from when two fifths were done, and what is remembered was full, to the end."""
        return self.memory[-1] / self.memory[1] - 1


def questions(bundle: Path, count: int) -> list[Question]:
    """Held-out ones about pictures, each answered by a fresh conversation of a session."""
    found = []
    with edge.load(bundle) as session:
        for item in islice(items(), count):
            data = BytesIO()
            item.picture.save(data, "PNG")
            session.forget()
            text = session.ask(data.getvalue(), item.question)
            content = [
                {"type": "image_url", "image_url": {"url": uri(data.getvalue())}},
                {"type": "text", "text": item.question},
            ]
            tokens = tuple(map(session.tokenizer.spelling, session.last.token_ids))
            found.append(Question({"messages": [{"role": "user", "content": content}]}, text, tokens))
    return found


class Soak:
    def __init__(self, address: str, asked: Sequence[Question], cut: float, seed: int = 1) -> None:
        self._host, self._port = urlsplit(address).hostname or "", urlsplit(address).port or 80
        self._asked = asked
        self._cut = cut
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.found = Found()

    def run(self, requests: int, clients: int) -> Found:
        plan = [
            (self._random.choice(self._asked), self._random.random() < self._cut, self._random.random())
            for _ in range(requests)
        ]
        began, fifth = time.perf_counter(), requests // 5
        for start in range(0, requests, fifth):
            with ThreadPoolExecutor(clients) as pool:
                list(pool.map(lambda one: self._one(*one), plan[start : start + fifth]))
            self.found.memory.append(self._metric("process_resident_memory_bytes"))
        self.found.seconds = time.perf_counter() - began
        until = time.monotonic() + 10
        while (held := int(self._metric("edge_requests_held"))) and time.monotonic() < until:
            time.sleep(0.05)
        self.found.held = held
        return self.found

    def _one(self, question: Question, cut: bool, chance: float) -> None:
        if cut:
            self._go(question, chance)
            return
        began = time.perf_counter()
        stream = chance < 0.5
        body = {**question.body, "stream": stream, "logprobs": not stream}
        while (got := self._post(body))[0] == 429:
            with self._lock:
                self.found.again += 1
            time.sleep(0.1)
        status, data = got
        same = status == 200 and (_text(data) == question.text if stream else _same(json.loads(data), question))
        with self._lock:
            self.found.latencies.append(time.perf_counter() - began)
            if same:
                self.found.right += 1
            else:
                self.found.wrong.append(f"{question.text!r}: {status} {data[-300:]!r}")

    def _go(self, question: Question, chance: float) -> None:
        """Send a request, or a part of it, and be gone after a while."""
        body = json.dumps({**question.body, "stream": chance < 0.5}).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode()
        with socket.create_connection((self._host, self._port)) as connection:
            connection.sendall(head + body[: len(body) if chance > 0.2 else len(body) // 2])
            time.sleep(chance * 0.3)
        with self._lock:
            self.found.cut += 1

    def _post(self, body: dict[str, Any]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_LATE)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found

    def _metric(self, name: str) -> float:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        match = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        assert match, name
        return float(match[1])


def _text(data: bytes) -> str:
    lines = [line[6:] for line in data.decode().splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content", "") for line in lines for choice in json.loads(line)["choices"])


def _same(data: Any, question: Question) -> bool:
    (choice,) = data["choices"]
    tokens = tuple(bytes(token["bytes"]) for token in choice["logprobs"]["content"])
    return choice["message"]["content"] == question.text and tokens == question.tokens


@dataclass(frozen=True)
class Overhead:
    """Milliseconds, the least and the median: neighbours only ever add to a time."""

    request: tuple[float, float]
    token: tuple[float, float]


def overhead(address: str, question: Question, rounds: int, tokens: int = 200) -> Overhead:
    """What a request and a token take more than the session's own part of it, for a picture that is known: by the
    client's clock, without what the answer says of prefill and decoding."""
    host, port = urlsplit(address).hostname or "", urlsplit(address).port or 80
    connection = http.client.HTTPConnection(host, port, timeout=120)
    more: dict[int, list[float]] = {1: [], tokens: []}
    for number in range(rounds + 1):
        for most, times in more.items():
            # What was said is likelier, so that the answer never ends by itself.
            body = json.dumps({**question.body, "repeat_penalty": 0.01, "stream": True, "max_tokens": most})
            began = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse().read().decode()
            took = 1e3 * (time.perf_counter() - began)
            lines = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
            timings = lines[-1]["timings"]
            if number:
                times.append(took - timings["prefill_ms"] - timings["decode_ms"])
    one, many = more.values()
    each = [(long - short) / (tokens - 1) for short, long in zip(one, many, strict=True)]
    return Overhead((min(one), median(one)), ((min(many) - min(one)) / (tokens - 1), median(each)))
