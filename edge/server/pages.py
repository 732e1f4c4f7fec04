"""The page's files, as they lie beside this one."""

from __future__ import annotations

from functools import partial
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}


def routes() -> list[Route]:
    """One for each file, read once: what is not listed here cannot be asked for."""
    found = []
    for entry in files("edge.server").joinpath("page").iterdir():
        kind = _TYPES.get(f".{entry.name.rpartition('.')[2]}")
        if kind is None:
            continue
        path = "/" if entry.name == "index.html" else f"/page/{entry.name}"
        found.append(Route(path, partial(_file, entry.read_bytes(), kind)))
    return found


async def _file(data: bytes, kind: str, request: Request) -> Response:
    return Response(data, headers={"Cache-Control": "no-cache"}, media_type=kind)
