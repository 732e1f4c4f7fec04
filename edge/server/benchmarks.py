"""`/v1/benchmarks`: what `edge bench` measures of a served bundle, row after row."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from starlette.types import Receive, Scope, Send

from edge.devices import detect
from edge.errors import EdgeError
from edge.server.errors import ApiError, told
from edge.server.fields import parse
from edge.server.models import Model
from edge.server.replies import KEEP_ALIVE, event, stream, unless_gone
from edge.server.request import read_model
from edge.server.service import WAITING_SECONDS, Service
from edge.server.work import Place

_LOG = logging.getLogger(__name__)
Row = Mapping[str, Any]
Measure = Callable[[Path], Iterator[Row | EdgeError]]  # a bundle's rows; closing it ends the measuring


class Benchmarks:
    """The endpoint. It takes the engines' turn, so that nothing is answered beside it."""

    def __init__(self, service: Service, measure: Measure) -> None:
        self._service = service
        self._measure = measure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        with service.place((scope.get("client") or ("",))[0]) as place, service.bodies.room() as body:
            fields = parse(await body.read(scope, receive))
            model = service.models[read_model(fields, service.names)]
            fields.end()
            if model.session.plan.peak_bytes > detect().memory_bytes:
                raise ApiError(503, "the memory does not hold the model twice, and a benchmark opens it anew")
            await unless_gone(receive, stream(self._rows(model, place), send, service.limits.stalled_seconds))

    async def _rows(self, model: Model, place: Place) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        found: asyncio.Queue[Row | ApiError | None] = asyncio.Queue()

        def work() -> None:
            try:
                for row in self._measure(model.session.bundle.path):
                    shown = told(row) if isinstance(row, EdgeError) else {**row, "model_filename": model.name}
                    loop.call_soon_threadsafe(found.put_nowait, shown)
                    if place.gone:
                        return
            except EdgeError as error:
                _LOG.warning("the benchmark failed: %s", error)
                loop.call_soon_threadsafe(found.put_nowait, told(error))
            finally:
                loop.call_soon_threadsafe(found.put_nowait, None)

        place.submit(work)
        while True:
            try:
                row = await asyncio.wait_for(found.get(), WAITING_SECONDS)
            except TimeoutError:
                yield KEEP_ALIVE
                continue
            if row is None:
                yield event("[DONE]")
                return
            yield event(row.to_json() if isinstance(row, ApiError) else row)
