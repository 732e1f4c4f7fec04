"""Vision encoder: turns an image into the embeddings that the decoder sees, one view at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from edge.bundle.manifest import Bundle
from edge.errors import EngineError, UsageError
from edge.inference.read_ahead import ReadAhead, read
from edge.inputs import anyres, image_memory
from edge.inputs.image import Source, digest
from edge.inputs.views import Views
from edge.spec import VLMSpec
from edge.types import Array, Embeddings, Graph

REMEMBERED = 64  # views whose embeddings are kept


@dataclass
class ImageTimes:
    """What the images of one question took, in seconds."""

    image: float = 0.0  # reading and preprocessing, as far as they were waited for
    vision: float = 0.0  # the vision encoder; nothing for views that it remembers


def check_budget(spec: VLMSpec, image_tokens: int | None) -> None:
    """Raises UsageError where an image may take fewer embeddings than one view gives. None: as many as the bundle
    says."""
    if image_tokens is not None and image_tokens < (one := spec.prompt.image_tokens):
        raise UsageError(
            f"an image cannot be {image_tokens} embeddings: one view of it gives {one}", hint=f"--image-tokens {one}"
        )


def joined(views: Views, encoded: Sequence[Embeddings]) -> Embeddings:
    """What an image is of the embeddings of its views."""
    if len(encoded) == 1:
        return encoded[0]
    key, rows = "+".join(one.key for one in encoded), [one.rows for one in encoded]
    if views.lines is None:
        return Embeddings(np.concatenate(rows), key, grid=views.grid)
    return Embeddings(anyres.joined(rows, views.lines), f"{key} as {views.lines}")


class VisionEncoder:
    """Every view of an image goes through the vision parts once; the latest views are remembered by their pixels, so
    that a tile or a frame which comes again costs nothing."""

    def __init__(
        self,
        bundle: Bundle,
        parts: Callable[[], Sequence[Graph]],
        image_tokens: int | None = None,
        room: int = image_memory.MOST,
        ahead: ReadAhead | None = None,
    ) -> None:
        """`parts` opens the vision parts, in order, when a view must be computed. They are not kept: the memory may
        hold them only for a while. `image_tokens`: what an image may take, instead of what the bundle says; raises
        UsageError where that is less than a view gives. `room`: bytes that an image may take while it is read.
        `ahead`: an image that is being read already; it is taken from there once, and may have changed later."""
        self._bundle = bundle
        self._spec = bundle.manifest.spec
        check_budget(self._spec, image_tokens)
        self.image_tokens = image_tokens
        self._room = room
        self._parts = parts
        self._ahead = ahead
        self._views: OrderedDict[str, Embeddings] = OrderedDict()

    def encode(self, image: Source, times: ImageTimes) -> Embeddings:
        """Embeddings f32 [N, hidden]. Raises ImageError, and EngineError where the bundle has no vision part."""
        self._require_vision()
        started = perf_counter()
        found = self._read(image)
        times.image += perf_counter() - started
        return self.encode_views(found, times)

    def _read(self, image: Source) -> Views:
        if self._ahead is None or not self._ahead.is_of(image):
            return read(image, self._spec, self.image_tokens, self._room)
        ahead, self._ahead = self._ahead, None
        return ahead.result()

    def encode_views(self, views: Views, times: ImageTimes) -> Embeddings:
        """Joined in their order, f32 [views * N, hidden], or as their lines say."""
        self._require_vision()
        return joined(views, [self._encode_view(view, times) for view in views.pixels])

    def forget(self) -> None:
        """Compute every view anew."""
        self._views.clear()

    def _encode_view(self, view: NDArray[np.float32], times: ImageTimes) -> Embeddings:
        started = perf_counter()
        key = digest(view)
        if key not in self._views:
            values: Array = view
            for graph in self._parts():
                values = graph.run({graph.inputs[0].name: values})[graph.outputs[0].name]
            self._views[key] = Embeddings(self._checked(values), key)
            if len(self._views) > REMEMBERED:
                self._views.popitem(last=False)
            times.vision += perf_counter() - started
        self._views.move_to_end(key)
        return self._views[key]

    def _checked(self, values: Array) -> NDArray[np.float32]:
        expected = (1, self._spec.prompt.image_tokens, self._spec.decoder.hidden)
        if values.shape != expected:
            raise EngineError(
                f"the vision part gave {list(values.shape)}, expected {list(expected)}",
                hint=f"edge verify {self._bundle.path}",
            )
        return np.ascontiguousarray(values[0], np.float32)

    def _require_vision(self) -> None:
        manifest = self._bundle.manifest
        if manifest.sees:
            return
        decoder = self._bundle.file(manifest.part("decoder").files[0])
        beside = (str(self._bundle.file(file)) for file in manifest.companions if file.path.startswith("mmproj"))
        raise EngineError(
            f"{self._bundle.path} has no vision part: its decoder answers questions about text only",
            hint=f"export again without --gguf-only, or: edge export {decoder} --mmproj {next(beside, 'FILE')} -o OUT",
        )
