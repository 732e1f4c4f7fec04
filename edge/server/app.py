"""The ASGI application: routes, and what every request passes on its way to them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.server import chat, openapi, pages, responses
from edge.server.answering import Done, Prepared, Text
from edge.server.benchmarks import Benchmarks, Measure
from edge.server.errors import ApiError, Gone, told
from edge.server.frames import Frames
from edge.server.replies import KEEP_ALIVE, failure, reply, stream, unless_gone
from edge.server.request import Ask
from edge.server.security import Guard
from edge.server.service import Read, Service
from edge.server.work import Place

_LOG = logging.getLogger(__name__)


class Reply(Protocol):
    """An answer in the words of an endpoint."""

    def whole(self, texts: Sequence[Text], done: Done) -> dict[str, Any]: ...

    def begin(self) -> Iterator[bytes]: ...

    def text(self, text: Text) -> Iterator[bytes]: ...

    def end(self, done: Done) -> Iterator[bytes]: ...

    def error(self, error: ApiError) -> Iterator[bytes]: ...


def create(service: Service, measure: Measure, *, keys: Sequence[str] = (), origins: Collection[str] = ()) -> Starlette:
    """The application over an open service, which it closes at its end. `measure` is what `edge bench` does."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        service.close()

    async def models(request: Request) -> Response:
        return reply({"object": "list", "data": [model.to_json() for model in service.models.values()]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in service.models:
            raise ApiError(404, f"the model {name[:80]!r} does not exist", param="model", code="model_not_found")
        return reply(service.models[name].to_json())

    async def health(request: Request) -> Response:
        return reply({"status": "ok"})

    async def described(request: Request) -> Response:
        return reply(openapi.document(service.limits))

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    routes = [
        Route("/v1/models", models),
        Route("/v1/models/{name}", model),
        Route("/v1/chat/completions", Answers(service, chat.read, chat.Reply), methods=["POST"]),
        Route("/v1/responses", Answers(service, responses.read, responses.Reply), methods=["POST"]),
        Route("/v1/frames", Frames(service), methods=["POST"]),
        Route("/v1/benchmarks", Benchmarks(service, measure), methods=["POST"]),
        Route("/openapi.json", described),
        *pages.routes(),
        Route("/health", health),
        Route("/metrics", metrics),
    ]
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={ApiError: _refused, HTTPException: _no_route, Exception: _broken},
        middleware=[
            Middleware(Watch, service=service, paths=[route.path for route in routes]),
            Middleware(Guard, keys=keys, origins=origins),
        ],
    )


class Answers:
    """An endpoint that answers with one generation, whole or as a stream."""

    def __init__(self, service: Service, read: Read, make: Callable[[Ask, str, int], Reply]) -> None:
        self._service = service
        self._read = read
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        client = (scope.get("client") or ("",))[0]
        with service.place(client) as place, service.bodies.room() as body:
            data = await body.read(scope, receive)
            prepared = await unless_gone(receive, self._prepared(data, place))
            words = self._make(prepared.ask, *service.identity())
            events = service.events(prepared, place)
            if prepared.ask.stream:
                await unless_gone(receive, stream(_told(words, events), send, service.limits.stalled_seconds))
                return
            found = await unless_gone(receive, _gathered(words, events))
        await found(scope, receive, send)

    async def _prepared(self, data: bytes, place: Place) -> Prepared:
        return await self._service.look(await self._service.read(data, self._read), place)


async def _gathered(words: Reply, events: AsyncIterator[Any]) -> Response:
    texts = []
    async for event in events:
        if isinstance(event, Text):
            texts.append(event)
        elif isinstance(event, Done):
            return reply(words.whole(texts, event))
        elif event is not None:
            raise event
    raise AssertionError("an answer ends with Done or an error")


async def _told(words: Reply, events: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    for data in words.begin():
        yield data
    async for event in events:
        found = (
            words.text(event)
            if isinstance(event, Text)
            else words.end(event)
            if isinstance(event, Done)
            else iter([KEEP_ALIVE])
            if event is None
            else words.error(event)
        )
        for data in found:
            yield data


class Watch:
    """Counts requests and logs each, without anything that was said in it."""

    def __init__(self, app: ASGIApp, service: Service, paths: Collection[str]) -> None:
        self._app = app
        self._metrics = service.metrics
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began = 0, perf_counter()

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        except (Gone, TimeoutError):
            status = 499  # nobody is there to be told
        finally:
            seconds = perf_counter() - began
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.count("edge_requests_total", endpoint=path, status=str(status))
            target = scope["raw_path"].decode("ascii", "replace")[:200]
            _LOG.info("%s %s %s %.3f s", scope["method"], target, status, seconds)


async def _refused(request: Request, error: Exception) -> Response:
    return failure(told(error))


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    found = {404: "no such endpoint", 405: "this endpoint takes another method"}.get(error.status_code, error.detail)
    return failure(ApiError(error.status_code, found, headers=error.headers))


async def _broken(request: Request, error: Exception) -> Response:
    return failure(told(error))
