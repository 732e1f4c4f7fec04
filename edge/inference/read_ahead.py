"""Image read ahead: decoded and cut into views in the background, while the parts are opened."""

from __future__ import annotations

import os
from functools import partial

from edge.inference.loader import in_background
from edge.inputs import image_memory
from edge.inputs.image import Source
from edge.inputs.views import Views, views
from edge.spec import VLMSpec


def read(image: Source, spec: VLMSpec, image_tokens: int | None, room: int) -> Views:
    """Decode an image, and cut it into views of `image_tokens` embeddings at most, None: as many as the bundle says.
    Raises ImageError, also where that takes more than `room` bytes of memory."""
    image_memory.require_room(image, spec.image, room)
    return views(image, spec, image_tokens)


class ReadAhead:
    def __init__(self, image: Source, spec: VLMSpec, image_tokens: int | None, room: int) -> None:
        """As `read` takes them."""
        self._image = image
        self._views = in_background(partial(read, image, spec, image_tokens, room))

    def is_of(self, image: Source) -> bool:
        """Whether it is this path, or the very object."""
        if isinstance(image, str | os.PathLike) and isinstance(self._image, str | os.PathLike):
            return os.fspath(image) == os.fspath(self._image)
        return image is self._image

    def result(self) -> Views:
        """Waits for it. Raises ImageError."""
        return self._views.result()
