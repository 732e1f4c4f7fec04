"""From a request's bytes to the events of its answer: what the endpoints have in common."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from edge.server import answering
from edge.server.answering import Done, Event, Pixels, Prepared, Text
from edge.server.bodies import Bodies
from edge.server.conversation import Picture
from edge.server.fields import Fields, parse
from edge.server.limits import Limits
from edge.server.metrics import Metrics
from edge.server.models import Model
from edge.server.pictures import Fetch, Pictures
from edge.server.request import Ask
from edge.server.work import Place, WorkQueue
from edge.types import Embeddings

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")
Read = Callable[[Fields, tuple[str, ...], Limits], Ask]
WAITING_SECONDS = 10.0  # until a reader is told that its answer is still to come


class Service:
    """The models with what stands before them. Everything but the engines' thread and the preparing ones runs in one
    event loop."""

    def __init__(self, models: Mapping[str, Model], limits: Limits, fetch: Fetch | None = None) -> None:
        self.models = models
        self.limits = limits
        self.names = tuple(models)
        self.metrics = Metrics()
        self.queue = WorkQueue(limits.waiting)
        self.bodies = Bodies(limits)
        self._pictures = Pictures(limits, fetch)
        self._preparing = ThreadPoolExecutor(2, thread_name_prefix="edge-prepare")
        self.metrics.gauge("edge_requests_held", lambda: self.queue.held)
        self.metrics.gauge("edge_requests_waiting", lambda: self.queue.waiting)
        self.metrics.gauge("edge_kept_bytes", lambda: sum(model.kept.nbytes for model in self.models.values()))
        self.metrics.gauge("edge_kept_prefixes", lambda: sum(len(model.kept) for model in self.models.values()))

    def close(self) -> None:
        self.queue.close()
        self._preparing.shutdown(cancel_futures=True)
        for model in self.models.values():
            model.session.close()

    @contextmanager
    def place(self, client: str) -> Iterator[Place]:
        """Raises ApiError 429."""
        place = self.queue.enter(client)
        try:
            yield place
        finally:
            place.leave()

    async def read(self, body: bytes, read: Read) -> Ask:
        """In another thread. Raises ApiError."""
        return await self.aside(lambda: read(parse(body), self.names, self.limits))

    async def look(self, ask: Ask, place: Place) -> Prepared:
        """Checked against the model, and with its pictures as pixels, in another thread. Raises ApiError."""
        return await self.aside(lambda: self._prepared(ask, place.entered))

    async def aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._preparing, work)

    async def events(self, prepared: Prepared, place: Place) -> AsyncIterator[Event | None]:
        """As the answer is made; None now and then while there is nothing. Ends with Done or an ApiError. Memory is
        bounded by the answer: a slow reader holds up nobody."""
        loop = asyncio.get_running_loop()
        found: asyncio.Queue[Event] = asyncio.Queue()
        place.submit(lambda: answering.answer(prepared, place, lambda e: _hand(loop, found, e)))
        while True:
            try:
                event = (
                    found.get_nowait() if not found.empty() else await asyncio.wait_for(found.get(), WAITING_SECONDS)
                )
            except TimeoutError:
                yield None
                continue
            if isinstance(event, Done):
                self._count(prepared, event)
            yield event
            if not isinstance(event, Text):
                return

    def identity(self) -> tuple[str, int]:
        """A name for an answer, and the time."""
        return secrets.token_hex(12), int(time.time())

    def _prepared(self, ask: Ask, arrived: float) -> Prepared:
        prepared = Prepared(ask, self.models[ask.model], arrived)
        prepared.positions = prepared.model.check(ask.conversation, self.limits)
        prepared.hold(prepared.model.guide(ask.constraint))
        for picture in ask.conversation.pictures:
            found = self._looked_at(picture, prepared)
            prepared.show(found)
            if prepared.model.overlaps:
                prepared.pictures[-1] = prepared.encoded(found)
        prepared.submitted = perf_counter()
        return prepared

    def _looked_at(self, picture: Picture, prepared: Prepared) -> Embeddings | Pixels:
        began, model = perf_counter(), prepared.model
        data = self._pictures.read(picture.url, picture.param)
        key = sha256(data).hexdigest()
        found: Embeddings | Pixels | None = model.known(key)
        if found is None:
            found = Pixels(key, self._pictures.views(data, model.session.views, picture.param))
        prepared.image_seconds += perf_counter() - began
        return found

    def _count(self, prepared: Prepared, done: Done) -> None:
        answer, model = done.answer, prepared.model.name
        self.metrics.count("edge_prompt_tokens_total", answer.prompt_tokens, model=model)
        self.metrics.count("edge_cached_tokens_total", answer.cached_tokens, model=model)
        self.metrics.count("edge_generated_tokens_total", answer.generated_tokens, model=model)
        self.metrics.count("edge_pictures_total", len(prepared.pictures), model=model)
        self.metrics.time("edge_first_token_seconds", done.timings["ttft_ms"] / 1e3)
        self.metrics.time("edge_queue_seconds", done.timings["queue_ms"] / 1e3)
        self.metrics.time("edge_decode_seconds", done.timings["decode_ms"] / 1e3)


def _hand(loop: asyncio.AbstractEventLoop, found: asyncio.Queue[Event], event: Event) -> None:
    try:
        loop.call_soon_threadsafe(found.put_nowait, event)
    except RuntimeError:  # the loop is closed: nobody waits for it any more
        return
