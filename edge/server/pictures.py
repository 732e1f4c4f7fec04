"""Pictures of a request: data URIs, or URLs where those are allowed, become the pixels that the model sees."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable

from edge.errors import ImageError
from edge.inputs import image
from edge.inputs.views import Views
from edge.server.errors import ApiError
from edge.server.limits import Limits

_DATA = re.compile(r"data:(?P<kind>[\w.+-]*/?[\w.+-]*)(?P<settings>(?:;[^,;]*)*),", re.IGNORECASE)
Fetch = Callable[[str], bytes]


class Pictures:
    """Reads pictures within limits. `fetch` None: URLs are refused."""

    def __init__(self, limits: Limits, fetch: Fetch | None) -> None:
        self._limits = limits
        self._fetch = fetch

    def views(self, data: bytes, see: Callable[[bytes], Views], param: str) -> Views:
        """What `see` makes of it. Raises ApiError, whose `param` names the field that the picture stood in."""
        try:
            width, height = image.dimensions(data)
            if width * height > self._limits.pixels:
                raise ImageError(f"an image has {width}x{height} pixels; at most {self._limits.pixels:,} are taken")
            return see(data)
        except ImageError as error:
            message = f"{param}: {error.message}" + (f"; {error.hint}" if error.hint else "")
            raise ApiError(400, message, param=param, code="invalid_image") from error

    def read(self, url: str, param: str) -> bytes:
        """The file. Raises ApiError."""
        if url[:5].lower() == "data:":
            return _decoded(url, param)
        scheme = url.partition(":")[0].lower()
        if scheme not in ("http", "https"):
            raise ApiError(
                400, f"{param} is no image: expected data:image/…;base64,…", param=param, code="invalid_image_url"
            )
        if self._fetch is None:
            raise ApiError(
                400,
                f"{param}: this server fetches no URLs (edge serve --allow-urls); send data:image/…;base64,…",
                param=param,
                code="urls_not_allowed",
            )
        return self._fetch(url)


def _decoded(url: str, param: str) -> bytes:
    match = _DATA.match(url)
    if match is None or not match["settings"].lower().endswith(";base64"):
        raise ApiError(400, f"{param} is no data:image/…;base64,… URI", param=param, code="invalid_image_url")
    kind = match["kind"].lower()
    if not kind.startswith("image/") and kind not in ("", "application/octet-stream"):
        raise ApiError(400, f"{param} has the type {kind[:60]}, not image/…", param=param, code="invalid_image_url")
    try:
        return base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: not ASCII
        raise ApiError(400, f"{param} is not base64: {error}", param=param, code="invalid_base64") from None
