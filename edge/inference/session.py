"""Session: an opened bundle that answers questions about images."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from types import TracebackType
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from edge.bundle import checksums, warm
from edge.bundle.manifest import Bundle
from edge.devices import detect
from edge.engines import installed_engines
from edge.errors import EdgeError, UsageError
from edge.inference.beginnings import Beginnings
from edge.inference.chat import Chat
from edge.inference.generate import Answer, OnToken, TextGenerator
from edge.inference.guide import Guide
from edge.inference.guides import Guides, Schema
from edge.inference.kept import Kept
from edge.inference.loader import ModelLoader
from edge.inference.opened import Opened
from edge.inference.opening import Opening
from edge.inference.prefix import Prefix
from edge.inference.read_ahead import ReadAhead
from edge.inference.sampling import Sampling
from edge.inference.saved import read as read_saved
from edge.inference.vision import ImageTimes, VisionEncoder, check_budget
from edge.inputs.image import Source
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.inputs.views import Views, views
from edge.planning import tuned
from edge.planning.plan import Plan, plan
from edge.planning.providers import parse, wanted
from edge.types import CacheKind, ComputeUnits, Decoder, Embeddings, Graph

Images = Source | Sequence[Source] | None  # no image, one, or several
_GREEDY = Sampling()


def load(
    path: str | os.PathLike[str],
    *,
    threads: int = 0,
    context: int = 0,
    engine: str | None = None,
    cache: CacheKind | None = None,
    units: ComputeUnits = "all",
    isa: str | None = None,
    provider: str | None = None,
    gpu_layers: int | None = None,
    flash: bool | None = None,
    max_memory: int | None = None,
    image_tokens: int | None = None,
    image: Source | None = None,
    debug: bool = False,
    evaluators: bool = False,
) -> Session:
    """Open a bundle on this machine.

    - `threads`: 0 takes what `edge tune` kept for this bundle here, or the physical cores.
    - `context`: positions that the decoder may hold; 0 takes the model's, or what memory allows.
    - `engine`: goes before the device's own for the parts that it opens; None with `threads` 0: what `edge tune` kept.
    - `cache`: how an engine that keeps its own KV cache stores it; None: as it likes.
    - `units`: what Core ML may use beside the CPU.
    - `isa`: the widest instruction set to use, by engines that can be held to it.
    - `provider`: what computes: `cpu`, `cuda` or `tensorrt`; `cuda,cpu`: the card, and the CPU where that cannot be
      used, or from the next question on when it fails. None: so, where the device has a card. `session.plan.notes` says
      what is on the CPU, and why.
    - `gpu_layers`: of a GGUF decoder, on the card; None: as many as fit.
    - `flash`: flash attention of a GGUF decoder on a card; None: where `edge verify` proved it equal there.
    - `max_memory`: bytes that the process may take at its peak, as `edge.planning.memory` predicts it; None: what is
      free. Where that is little, the plan stores the KV cache in 8 bits, or opens the vision encoder and the decoder
      one at a time: a new image then costs opening both again.
    - `image_tokens`: embeddings that an image may take, of a model that sees large images in tiles; None: as the bundle
      says.
    - `image`: what the first question will be about. It is read and cut into views while the parts are opened; an
      ImageError comes with the question.
    - `debug`: let the engines' libraries write their messages.
    - `evaluators`: what no engine opens may be computed by the export side, to prove it.

    Returns when images can be encoded; the decoder may still be opening. What an engine parses is hashed before it is
    opened, and what holds numbers only meanwhile, unless they were before and have not changed since
    (`edge.bundle.checksums`): a damaged file raises BundleError here, or before anything is answered. Raises
    EngineError when no engine opens a part, here or at the first question, ProviderError where the card that was asked
    for cannot be used or is too small, and UsageError on a call that asks for what does not exist.
    """
    started = perf_counter()
    if cache not in (None, *get_args(CacheKind)):
        raise UsageError(f"no cache of {cache!r}", hint="one of: " + ", ".join(get_args(CacheKind)))
    if units not in get_args(ComputeUnits):
        raise UsageError(f"no compute units {units!r}", hint="one of: " + ", ".join(get_args(ComputeUnits)))
    bundle = Bundle.open(path)
    check_budget(bundle.manifest.spec, image_tokens)  # refused before anything is opened
    here = detect()
    if max_memory is not None:
        here = replace(here, memory_bytes=min(here.memory_bytes, max_memory))
    engines = installed_engines(evaluators=evaluators)
    if engine is None and threads == 0 and isa is None and (kept := tuned.choice(bundle, here, installed_engines())):
        engine, threads = kept.engine, kept.threads
    order = parse(provider)
    planned = partial(
        plan,
        bundle.manifest,
        here,
        engines,
        engine=engine,
        threads=threads,
        context=context,
        cache=cache,
        isa=isa,
    )
    chosen = planned(provider=order, gpu_layers=gpu_layers)
    spare = partial(planned, provider=("cpu",)) if chosen.on_card and "cpu" in wanted(here, order) else None
    ahead = None
    if image is not None and not chosen.one_at_a_time:  # where memory is short, nothing is read before it is needed
        ahead = ReadAhead(image, bundle.manifest.spec, image_tokens, chosen.image_bytes)
    opening = Opening(bundle, chosen, spare, units, debug, flash, started, warm.files(bundle))
    try:
        reading = opening.tokenizer()
        loader = opening.first()
        tokenizer = reading.result()
    except EdgeError:
        checksums.check(bundle)  # a damaged file explains more than what an engine says of it
        raise
    return Session(opening, loader, tokenizer, 1e3 * (perf_counter() - started), image_tokens, ahead)


class Session:
    """Made by `load`; one thread at a time. After an error, or an answer that was not read to its end, it goes on."""

    def __init__(
        self,
        opening: Opening,
        loader: ModelLoader,
        tokenizer: Tokenizer,
        load_ms: float,
        image_tokens: int | None = None,
        ahead: ReadAhead | None = None,
    ) -> None:
        self.bundle = opening.bundle
        self.tokenizer = tokenizer
        self._spec = self.bundle.manifest.spec
        self._opened = Opened(opening, loader, tokenizer, load_ms)
        self._vision = VisionEncoder(self.bundle, self._vision_parts, image_tokens, self.plan.image_bytes, ahead)
        self._beginnings = Beginnings(self._opened, tokenizer)
        self._last: Answer | None = None
        self._guides = Guides(tokenizer, self._spec)

    @property
    def plan(self) -> Plan:
        """Of what computes now: after a card failed, the CPU may."""
        return self._opened.plan

    @property
    def load_ms(self) -> float:
        """Until all was open, once the decoder was waited for; until images could be encoded."""
        return self._opened.load_ms

    @property
    def last(self) -> Answer:
        """The answer that ended last. Raises UsageError when there is none."""
        if self._last is None:
            raise UsageError("nothing was answered yet", hint="read an answer to its end first")
        return self._last

    @property
    def decoder(self) -> Decoder:
        """The decoder itself, to extend and rewind: what it remembers is not used for an answer any more."""
        return self._open().release()

    def encode_image(self, source: Source) -> Embeddings:
        """What the decoder sees of an image: f32 [N, hidden] of each view. What was encoded before is not computed
        again. Raises ImageError."""
        self._opened.loader()
        with self._opened.recovering():
            embeddings = self._vision.encode(source, ImageTimes())
        self._opened.check()
        return embeddings

    def views(self, source: Source) -> Views:
        """An image as the vision encoder sees it; nothing is computed. Raises ImageError."""
        return views(source, self._spec, self._vision.image_tokens)

    def encode_pixels(self, values: NDArray[np.float32] | Views) -> Embeddings:
        """As `encode_image`, from pixels f32 [1, 3, size, size] of one view, or from what `views` gave."""
        self._opened.loader()
        image = values if isinstance(values, Views) else Views((values,))
        with self._opened.recovering():
            embeddings = self._vision.encode_views(image, ImageTimes())
        self._opened.check()
        return embeddings

    def ask(
        self,
        image: Images,
        question: str,
        *,
        max_tokens: int = 256,
        system: str | None = None,
        sampling: Sampling = _GREEDY,
        schema: Schema = None,
    ) -> str:
        """The whole answer; `last` tells more about it. See `stream`."""
        pieces = self.stream(image, question, max_tokens=max_tokens, system=system, sampling=sampling, schema=schema)
        return "".join(pieces)

    def stream(
        self,
        image: Images,
        question: str,
        *,
        max_tokens: int = 256,
        system: str | None = None,
        sampling: Sampling = _GREEDY,
        schema: Schema = None,
    ) -> Iterator[str]:
        """The answer in pieces, as it is made.

        - `image`: None, an image (path, bytes, Pillow image, uint8 array), or a list of images.
        - `system`: None takes the model's own.
        - `schema`: what the answer must be, a JSON schema or a `Constraint`. It always parses: where `max_tokens` would
          cut it, it is closed in time, and `last.stop_reason` is "length". Needs the extra `schema`.

        Raises ImageError, ContextError, UsageError, and EngineError without that extra."""
        started, times = perf_counter(), ImageTimes()
        guide = self.guide(schema)
        turn = Turn.about(question, self._encode_all(image, times))
        yield from self._answer(
            [turn], started, times, system=system, max_tokens=max_tokens, sampling=sampling, guide=guide
        )

    def converse(
        self,
        turns: Sequence[Turn],
        *,
        max_tokens: int = 256,
        system: str | None = None,
        sampling: Sampling = _GREEDY,
        stop: Sequence[str] = (),
        on_token: OnToken | None = None,
        guide: Guide | None = None,
    ) -> Generator[str, None, Answer]:
        """The answer to the last turn, in pieces; the Answer is returned. Images stand in the turns as `encode_image`
        gave them. `stop`: texts that end the answer; `on_token` is called with each token and its logits f32 [vocab],
        and ends the answer by raising. `guide`: what the answer is held to, where no `stop` is given. A `system` text
        may be a client's: nothing of it is kept for other sessions."""
        return self._answer(
            turns,
            perf_counter(),
            ImageTimes(),
            system=system,
            foreign=system is not None,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            on_token=on_token,
            guide=guide,
        )

    def chat(self, image: Images = None, *, system: str | None = None) -> Chat:
        """A conversation about the same image or images."""
        images = self._encode_all(image, ImageTimes())
        self._opened.check()
        return Chat(self, images, system)

    def resume(self, path: str | os.PathLike[str], image: Images = None) -> Chat:
        """A conversation that `Chat.save` wrote, of this bundle; the next question is about `image`, too. Where the
        engine, or how it was opened, keeps its KV cache otherwise, what was said is computed anew with that question.
        Raises SessionError on a file that is torn, damaged, no conversation or another bundle's."""
        saved = read_saved(path, self.bundle)
        images = (*saved.images, *self._encode_all(image, ImageTimes()))
        if saved.prefix is not None:
            self._open().take_up(saved.prefix)
        self._opened.check()
        return Chat(self, images, saved.system, saved.turns)

    def snapshot(self) -> Prefix | None:
        """A copy of what the KV cache holds, to go on from later; None where the engine keeps it out of reach. Of so
        many `nbytes`. Raises EngineError."""
        return self._open().snapshot()

    def restore(self, prefix: Prefix) -> None:
        """Hold what a snapshot of this bundle does instead: the next answer computes only what that lacks. Raises
        EngineError on one that the decoder does not take."""
        self._open().restore(prefix)

    def keep(self, limit: int) -> Kept:
        """Conversations that take turns are kept, as many as lie in `limit` bytes: each is gone on with where it was
        left. Engines that keep their KV cache out of reach hold the last one only, and so do all where `limit` is 0."""
        kept = Kept(limit)
        self._opened.keep(kept)
        return kept

    def warm(self, system: str | None = None) -> None:
        """Wait for the decoder, and hold what every first question begins with: the positions before the image, of this
        system text. They are computed where the user's cache does not have them, and kept there. Raises EngineError,
        and UsageError on a system text that the prompt has no place for."""
        with self._opened.recovering():
            self._beginnings.warm(system)

    def forget(self) -> None:
        """Nothing of the images and questions before is used again: the next answer is computed whole."""
        self._opened.forget()
        self._vision.forget()
        self._open().release()
        self._beginnings.forget()

    def close(self) -> None:
        """Let the engines and their memory go. What prompts begin with is kept for the sessions to come."""
        self._beginnings.keep()
        self._opened.close()
        self._vision.forget()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._beginnings.answered(None)  # nothing more is done after an error
        self.close()

    def _answer(
        self,
        turns: Sequence[Turn],
        started: float,
        times: ImageTimes,
        *,
        system: str | None,
        foreign: bool = False,
        **options: Any,
    ) -> Generator[str, None, Answer]:
        """`foreign`: the system text is not this user's own, and nothing of it is written down. `options` as
        `TextGenerator.stream` takes them."""
        prompt = segments(self._spec.prompt, self.tokenizer, turns, system)
        constant = None if foreign else self._beginnings.of(system)
        taken = self._beginnings.taken(constant)
        with self._opened.recovering():
            answer = yield from self._open().stream(prompt, started=started, constant=taken, **options)
        self._beginnings.answered(constant)
        timings = replace(
            answer.timings, load_ms=self.load_ms, image_ms=1e3 * times.image, vision_ms=1e3 * times.vision
        )
        self._last = replace(answer, timings=timings)
        return self._last

    def guide(self, schema: Schema) -> Guide | None:
        """What holds one answer to a schema, for `converse`; compiled here, while another answer may be made. Raises
        UsageError on a schema that cannot be followed, and EngineError without the extra `schema`."""
        return self._guides.guide(schema)

    def _prefix(self, turns: Sequence[Turn], system: str | None) -> Prefix | None:
        """What the KV cache holds of a conversation, without anything of others; None: nothing within reach."""
        text = self._opened.held
        if text is None:
            return None
        return text.snapshot(segments(self._spec.prompt, self.tokenizer, [*turns, Turn.about("?")], system))

    def _open(self) -> TextGenerator:
        """Waits for the decoder."""
        return self._opened.text()

    def _encode_all(self, images: Images, times: ImageTimes) -> tuple[Embeddings, ...]:
        if images is None:
            return ()
        self._opened.loader()
        sources = images if isinstance(images, list | tuple) else [cast("Source", images)]
        with self._opened.recovering():
            return tuple(self._vision.encode(source, times) for source in sources)

    def _vision_parts(self) -> tuple[Graph, ...]:
        if self._opened.loader().one_at_a_time:
            self._beginnings.keep()  # the decoder is closed
        return self._opened.vision()
