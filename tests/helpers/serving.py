"""A server in this process, over bundles that the null engine opens, and a plain HTTP client."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from commands import MAIN
from conftest import REPOSITORY
from PIL import Image

import edge
from edge.server.app import create
from edge.server.benchmarks import Measure
from edge.server.limits import Limits
from edge.server.models import Model
from edge.server.run import Settings, configuration, listen
from edge.server.service import Service


def photo(seed: int = 1, size: tuple[int, int] = (30, 20), format: str = "PNG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, format)
    return data.getvalue()


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def asked(question: str, *pictures: bytes) -> list[dict[str, Any]]:
    """Messages of one question about pictures."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": uri(data)}} for data in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


class Got:
    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object; it is whole."""
        error: dict[str, Any] = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"} and error["message"]
        return error

    @property
    def events(self) -> list[Any]:
        """The data of server-sent events."""
        blocks = self.body.decode().split("\n\n")
        lines = [line for block in blocks for line in block.splitlines() if line.startswith("data: ")]
        return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


class Served:
    def __init__(self, service: Service, port: int, server: uvicorn.Server) -> None:
        self.service, self.port, self.server = service, port, server

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Got:
        """`body`: bytes as they are, else as JSON. An underscore in a header's name is a hyphen."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {"content-type": "application/json"} if body is not None else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, data, sent)
        found = connection.getresponse()
        got = Got(found.status, {name.lower(): value for name, value in found.getheaders()}, found.read())
        connection.close()
        return got

    def get(self, path: str, **headers: str) -> Got:
        return self.request("GET", path, **headers)

    def post(self, path: str, body: Any, **headers: str) -> Got:
        return self.request("POST", path, body, **headers)

    def chat(self, messages: Any, **fields: Any) -> Got:
        return self.post("/v1/chat/completions", {"messages": messages, "max_tokens": 8, **fields})

    def wait(self, true: Callable[[], bool]) -> None:
        until = time.monotonic() + 20
        while not true():
            assert time.monotonic() < until, "it never came to be"
            time.sleep(0.005)


def nothing(bundle: Path) -> Iterator[Any]:
    return iter(())


@contextmanager
def served(
    *bundles: Path,
    limits: Limits | None = None,
    keys: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
    measure: Measure = nothing,
    fetch: Callable[[str], bytes] | None = None,
    kept: int = 0,
    engine: str | None = "null",
) -> Iterator[Served]:
    limits = limits or Limits()
    settings = Settings(port=0, limits=limits)
    models = {path.name: Model(path.name, edge.load(path, engine=engine), kept) for path in bundles}
    service, listener = Service(models, limits, fetch), listen(settings)
    app = create(service, measure, keys=keys, origins=origins)
    server = uvicorn.Server(configuration(app, settings))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield Served(service, listener.getsockname()[1], server)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


class Gate:
    """Holds the decoder before each token until it is let through."""

    def __init__(self, served: Served, name: str) -> None:
        generator = served.service.models[name].session._open()
        self._through = threading.Semaphore(0)
        self.tokens = 0
        append = generator._append

        def gated(token: int) -> Any:
            assert self._through.acquire(timeout=30), "nobody let the token through"
            self.tokens += 1
            return append(token)

        generator._append = gated  # type: ignore[method-assign]

    def open(self, tokens: int = 100_000) -> None:
        self._through.release(tokens)


@contextmanager
def serving(*arguments: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`edge serve` as a process of its own on a free port, and the address that it says."""
    command = [sys.executable, "-c", MAIN, "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    assert process.stderr is not None
    address = ""
    while not address:
        line = process.stderr.readline()
        assert line, "it ended before it listened"
        address = line.rpartition(" at ")[2].strip() if " at http" in line else ""
    drain = threading.Thread(target=process.stderr.read, daemon=True)
    drain.start()
    try:
        yield process, address
    finally:
        process.kill()
        process.wait()
        drain.join(10)
