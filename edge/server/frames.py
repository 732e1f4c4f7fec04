"""`/v1/frames`: a camera's pictures, of which the latest wins.

A frame that arrives while another of its camera is looked at waits; one that waited already is dropped for it, and
told so. So an answer is about the newest picture that there was when the model became free.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edge.server.answering import Done
from edge.server.constraints import read_response_format
from edge.server.conversation import Conversation, Said
from edge.server.errors import ApiError, Gone
from edge.server.fields import Fields
from edge.server.limits import Limits
from edge.server.replies import reply, unless_gone
from edge.server.request import Ask, read_image, read_max_tokens, read_model, read_sampling
from edge.server.service import Service
from edge.server.work import Place

_LONGEST = 128  # characters of a camera's or a frame's name


class Frame:
    """One picture of a camera on its way."""

    def __init__(self, name: str, place: Place) -> None:
        self.name = name
        self.place = place
        self.replaced_by: asyncio.Future[str] = asyncio.get_running_loop().create_future()


class Cameras:
    """The newest frame of each camera; belongs to one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.cameras
        self._newest: OrderedDict[str, Frame] = OrderedDict()
        self._numbers: OrderedDict[str, int] = OrderedDict()

    def number(self, camera: str) -> str:
        """A name for a frame that has none."""
        found = self._numbers.pop(camera, 0) + 1
        self._numbers[camera] = found
        if len(self._numbers) > self._most:
            self._numbers.popitem(last=False)
        return str(found)

    def arrived(self, camera: str, frame: Frame) -> None:
        """The one before is dropped, unless it is looked at by now."""
        before = self._newest.pop(camera, None)
        self._newest[camera] = frame
        if before is not None and before.place.withdraw():
            before.replaced_by.set_result(frame.name)

    def left(self, camera: str, frame: Frame) -> None:
        if self._newest.get(camera) is frame:
            del self._newest[camera]


class Frames:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._cameras = Cameras(service.limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        with service.place((scope.get("client") or ("",))[0]) as place, service.bodies.room() as body:
            data = await body.read(scope, receive)
            answer = await unless_gone(receive, self._answer(data, place))
        await answer(scope, receive, send)

    async def _answer(self, data: bytes, place: Place) -> Response:
        service, named = self._service, _Named()
        ask = await service.read(data, named.read)
        frame = Frame(named.frame or self._cameras.number(named.camera), place)
        told = {"object": "frame", "camera": named.camera, "frame": frame.name, "model": ask.model}
        self._cameras.arrived(named.camera, frame)
        looking = asyncio.ensure_future(self._looked_at(ask, place))
        try:
            await asyncio.wait((looking, frame.replaced_by), return_when=asyncio.FIRST_COMPLETED)
            if frame.replaced_by.done() and not looking.done():
                service.metrics.count("edge_frames_dropped_total", model=ask.model)
                return reply({**told, "dropped": True, "replaced_by": frame.replaced_by.result(), "answer": None})
            done = looking.result()
        finally:
            looking.cancel()
            self._cameras.left(named.camera, frame)
        return reply(
            {
                **told,
                "dropped": False,
                "replaced_by": None,
                "answer": done.answer.text,
                "finish_reason": done.finish_reason,
                "usage": done.usage,
                "timings": done.timings,
            }
        )

    async def _looked_at(self, ask: Ask, place: Place) -> Done:
        prepared = await self._service.look(ask, place)
        async for event in self._service.events(prepared, place):
            if isinstance(event, Done):
                return event
            if isinstance(event, ApiError):
                raise event
        raise Gone


class _Named:
    """Reads a frame's request; keeps the names that are its own."""

    def __init__(self) -> None:
        self.camera = "camera"
        self.frame: str | None = None

    def read(self, fields: Fields, names: tuple[str, ...], limits: Limits) -> Ask:
        """Raises ApiError."""
        model = read_model(fields, names)
        self.camera = _name(fields, "camera") or self.camera
        self.frame = _name(fields, "frame")
        conversation = Conversation("question", system=fields.text("system"))
        conversation.turns.append(Said([read_image(fields, "image"), fields.needed_text("question")]))
        asked = Ask(
            model=model,
            conversation=conversation,
            max_tokens=read_max_tokens(fields, ("max_tokens",), limits),
            sampling=read_sampling(fields),
            stop=fields.texts("stop", limits.stops),
            constraint=read_response_format(fields.nested("response_format")),
        )
        fields.end()
        return asked


def _name(fields: Fields, key: str) -> str | None:
    value = fields.text(key)
    if value is not None and not 0 < len(value) <= _LONGEST:
        raise ApiError(400, f"{key} has {len(value)} characters, expected 1 to {_LONGEST}", param=key)
    return value
