"""Loads the vision encoder and the decoder as the plan says: both at once, or one at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import TypeVar

from edge.bundle import checksums
from edge.bundle.manifest import NUMBERS, Bundle
from edge.decoders.kv_graph import kv_decoder
from edge.devices import host
from edge.engines import open_part
from edge.errors import EngineError
from edge.planning.plan import Choice, Plan
from edge.types import Decoder, Graph, OpenOptions, PartFiles

T = TypeVar("T")


class ModelLoader:
    """Opens both from the start, each in a thread of its own. One at a time, either opens when it is asked for, after
    the other is closed: whoever holds that one must have let it go. What native code parses is hashed before it is
    opened, each time; what holds numbers only, meanwhile."""

    def __init__(self, bundle: Bundle, chosen: Plan, options: OpenOptions, started: float) -> None:
        self.one_at_a_time = chosen.one_at_a_time
        self._bundle = bundle
        self._options = options
        self._started = started  # when loading began, by perf_counter
        self._vision_choices = [choice for choice in chosen.choices if "decoder" not in choice.part.covers]
        (self._decoder_choice,) = (choice for choice in chosen.choices if "decoder" in choice.part.covers)
        self._vision: list[Future[Graph]] = []
        self._decoder: Future[tuple[Decoder, float]] | None = None
        self._checks = {"": in_background(partial(checksums.check, bundle))}  # the whole, and parts opened since
        if not self.one_at_a_time:
            self._begin_vision()
            self._begin_decoder()

    def vision(self) -> tuple[Graph, ...]:
        """The parts that turn pixels into embeddings, in order; none of a bundle without. Raises EngineError."""
        if self.one_at_a_time and self._vision_choices and not self._vision:
            self._decoder = None
            _give_back()
            self._begin_vision()
        return tuple(future.result() for future in self._vision)

    def decoder(self) -> tuple[Decoder, float]:
        """And how long it took to open, in milliseconds: from the start of loading, or from when it was asked for.
        Raises EngineError."""
        if self._decoder is None:
            self._vision = []
            _give_back()
            self._started = perf_counter()
            self._begin_decoder()
        assert self._decoder is not None
        return self._decoder.result()

    def check(self) -> None:
        """Waits for the hashes of all that was opened. Raises BundleError on a file that is not what was exported."""
        for future in list(self._checks.values()):
            future.result()

    def let_go(self) -> None:
        """Of the engines and their memory."""
        self._vision, self._decoder = [], None
        _give_back()

    def raise_known_failure(self) -> None:
        """Raises what opening the decoder raised, if it has ended; does not wait for it."""
        if self._decoder is not None and self._decoder.done():
            self._decoder.result()

    def _begin_vision(self) -> None:
        self._vision = [in_background(partial(self._open_graph, choice)) for choice in self._vision_choices]

    def _begin_decoder(self) -> None:
        self._decoder = in_background(self._open_decoder)

    def _open_graph(self, choice: Choice) -> Graph:
        part = open_part(self._sound(choice), choice.engine, replace(self._options, provider=choice.provider))
        if isinstance(part, Decoder):
            raise EngineError(f"{choice.engine} opened the {'+'.join(choice.part.covers)} as a decoder")
        return part

    def _open_decoder(self) -> tuple[Decoder, float]:
        choice, options = self._decoder_choice, replace(self._options, provider=self._decoder_choice.provider)
        files = self._sound(choice)
        part = open_part(files, choice.engine, options)
        if not isinstance(part, Decoder):
            if options.cache:
                raise EngineError(
                    f"the KV cache cannot be stored as {options.cache}: the graph that {choice.engine} runs fixes that",
                    hint="leave --cache away, or export a decoder that keeps them itself: --recipe onnx-w8a8-gguf-q4_0",
                )
            part = kv_decoder(part, files, self._bundle.manifest.spec.decoder, options.context)
        return part, 1e3 * (perf_counter() - self._started)

    def _sound(self, choice: Choice) -> PartFiles:
        """The files of a part, once those of structure are known to be what was exported. The others may have changed
        since a half was opened last."""
        part = choice.part
        checksums.check(self._bundle, [file for file in part.files if not file.path.endswith(NUMBERS)])
        if numbers := [file for file in part.files if file.path.endswith(NUMBERS)]:
            self._checks["+".join(part.covers)] = in_background(partial(checksums.check, self._bundle, numbers))
        return self._bundle.files(part)


def in_background(work: Callable[[], T]) -> Future[T]:
    """Run in a thread of its own."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="edge-load")
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future


def _give_back() -> None:
    """Return freed memory to the system: the C library keeps it otherwise."""
    gc.collect()
    host.trim()
