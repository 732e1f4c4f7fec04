"""A bundle that answers questions about pictures."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from time import perf_counter
from types import TracebackType
from typing import cast, get_args

import numpy as np
from numpy.typing import NDArray

from edge.bundle import checksums
from edge.bundle.manifest import Bundle
from edge.devices import detect
from edge.engines import installed_engines
from edge.errors import EdgeError, EngineError, UsageError
from edge.image import Source, digest, pixels
from edge.inference.generate import Answer, TextGenerator
from edge.inference.loader import Halves, beside
from edge.inference.sampling import Sampling
from edge.planning.plan import Plan, plan
from edge.prompt import Turn, segments
from edge.tokenizer import Tokenizer
from edge.types import Array, CacheKind, ComputeUnits, Decoder, Embeddings, OpenOptions

Images = Source | Sequence[Source] | None  # no picture, one, or several
REMEMBERED = 32  # pictures whose embeddings a session keeps
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
    max_memory: int | None = None,
    debug: bool = False,
    evaluators: bool = False,
) -> Session:
    """Open a bundle on this machine. `threads` 0: its physical cores; `context` 0: the model's, or what memory allows;
    `cache`: how an engine that keeps keys and values itself stores them; None: as it likes; `units`: what Core ML may
    use beside the processor; `isa`: the widest instruction set to use, by engines that can be held to it;
    `evaluators`: what no engine opens may be computed by the export side, to prove it.
    `max_memory`: bytes that the process may take at its peak, as `edge.planning.memory` predicts it; None: what is
    free. Where that is little, the plan keeps keys and values in 8 bits, or one half of the model open at a time:
    another picture than the one before then costs opening both again.

    It is done when pictures can be encoded; the decoder may still be opening beside that. The files are hashed while
    the engines open them and after, unless they were before and have not changed since (`edge.bundle.checksums`): a
    damaged one raises BundleError here, or before anything is answered. Raises EngineError when no engine opens a part,
    here or at the first question, and UsageError on a call that asks for what does not exist.
    """
    started = perf_counter()
    if cache not in (None, *get_args(CacheKind)):
        raise UsageError(f"no cache of {cache!r}", hint="one of: " + ", ".join(get_args(CacheKind)))
    if units not in get_args(ComputeUnits):
        raise UsageError(f"no compute units {units!r}", hint="one of: " + ", ".join(get_args(ComputeUnits)))
    bundle = Bundle.open(path)
    here = detect()
    if max_memory is not None:
        here = replace(here, memory_bytes=min(here.memory_bytes, max_memory))
    engines = installed_engines(evaluators=evaluators)
    chosen = plan(bundle.manifest, here, engines, engine=engine, threads=threads, context=context, cache=cache, isa=isa)
    options = OpenOptions(chosen.threads, chosen.context, debug, chosen.cache, units, chosen.isa)
    check = beside(lambda: checksums.check(bundle))
    halves = Halves(bundle, chosen, options, started)
    try:
        tokenizer = Tokenizer.open(bundle.file(bundle.manifest.tokenizer))
        halves.graphs()
        halves.known_to_fail()  # told before a picture is looked at
    except EdgeError:
        check.result()  # a damaged file explains more than what an engine says of it
        raise
    return Session(bundle, chosen, halves, tokenizer, check, 1e3 * (perf_counter() - started))


@dataclass
class _Seeing:
    """What the pictures of one question took, in seconds."""

    image: float = 0.0
    vision: float = 0.0


class Session:
    """Made by `load`; one thread at a time. After an error, or an answer that was not read to its end, it goes on."""

    def __init__(
        self,
        bundle: Bundle,
        chosen: Plan,
        halves: Halves,
        tokenizer: Tokenizer,
        check: Future[None],
        load_ms: float,
    ) -> None:
        self.bundle = bundle
        self.plan = chosen
        self._spec = bundle.manifest.spec
        self._halves: Halves | None = halves  # None: closed
        self.tokenizer = tokenizer
        self._check = check
        self.load_ms = load_ms  # until all was open, once the decoder was waited for; until pictures could be encoded
        self._text: TextGenerator | None = None  # made when the decoder is there
        self._seen: OrderedDict[str, Embeddings] = OrderedDict()
        self._last: Answer | None = None

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
        """What the decoder sees of a picture: f32 [N, hidden]. A picture that was seen before is not computed again.
        Raises ImageError."""
        return self.encode_pixels(pixels(source, self._spec.image))

    def encode_pixels(self, values: NDArray[np.float32]) -> Embeddings:
        """As `encode_image`, from pixels f32 [1, 3, size, size]."""
        embeddings = self._see(values, _Seeing())
        self._check.result()
        return embeddings

    def ask(
        self,
        image: Images,
        question: str,
        *,
        max_tokens: int = 256,
        system: str | None = None,
        sampling: Sampling = _GREEDY,
    ) -> str:
        """The whole answer; `last` tells more about it. See `stream`."""
        return "".join(self.stream(image, question, max_tokens=max_tokens, system=system, sampling=sampling))

    def stream(
        self,
        image: Images,
        question: str,
        *,
        max_tokens: int = 256,
        system: str | None = None,
        sampling: Sampling = _GREEDY,
    ) -> Iterator[str]:
        """The answer in pieces, as it is made. `image` is None, a picture (path, bytes, Pillow image, uint8 array), or
        a list of pictures; `system` None takes the model's own. Raises ImageError, ContextError, UsageError."""
        started, seeing = perf_counter(), _Seeing()
        turn = Turn.about(question, self._look(image, seeing))
        yield from self._answer([turn], system, max_tokens, sampling, started, seeing)

    def chat(self, image: Images = None, *, system: str | None = None) -> Chat:
        """A conversation about the same picture or pictures."""
        pictures = self._look(image, _Seeing())
        self._check.result()
        return Chat(self, pictures, system)

    def forget(self) -> None:
        """Nothing of the pictures and questions before is used again: the next answer is computed whole."""
        self._seen.clear()
        self._open().release()

    def close(self) -> None:
        """Let the engines and their memory go."""
        self._halves, self._text = None, None
        self._seen.clear()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(
        self,
        turns: Sequence[Turn],
        system: str | None,
        max_tokens: int,
        sampling: Sampling,
        started: float,
        seeing: _Seeing,
    ) -> Generator[str, None, Answer]:
        prompt = segments(self._spec.prompt, self.tokenizer, turns, system)
        answer = yield from self._open().stream(prompt, max_tokens=max_tokens, sampling=sampling, started=started)
        times = replace(
            answer.timings, load_ms=self.load_ms, image_ms=1e3 * seeing.image, vision_ms=1e3 * seeing.vision
        )
        self._last = replace(answer, timings=times)
        return self._last

    def _opened(self) -> Halves:
        if self._halves is None:
            raise UsageError("the session is closed", hint="edge.load(path) opens another")
        return self._halves

    def _open(self) -> TextGenerator:
        """Waits for the decoder."""
        halves = self._opened()
        if self._text is None:
            try:
                decoder, opened_ms = halves.decoder()
            except EdgeError:
                self._check.result()  # a damaged file explains more than what an engine says of it
                raise
            self.load_ms = max(self.load_ms, opened_ms)
            self._text = TextGenerator(
                decoder, self._spec.prompt, self.tokenizer, self.plan.context, self._check.result
            )
        return self._text

    def _look(self, images: Images, seeing: _Seeing) -> tuple[Embeddings, ...]:
        sources: Sequence[Source]
        if images is None:
            sources = ()
        elif isinstance(images, list | tuple):
            sources = images
        else:
            sources = (cast("Source", images),)
        seen = []
        for source in sources:
            started = perf_counter()
            values = pixels(source, self._spec.image)
            seeing.image += perf_counter() - started
            seen.append(self._see(values, seeing))
        return tuple(seen)

    def _see(self, values: NDArray[np.float32], seeing: _Seeing) -> Embeddings:
        halves = self._opened()
        if not self.bundle.manifest.sees:
            raise _blind(self.bundle)
        started = perf_counter()
        key = digest(values)
        if key not in self._seen:
            if halves.one_at_a_time and self._text is not None:
                self._text.release()  # ends an answer that is still being read: its decoder is closed
                self._text = None
            for graph in halves.graphs():
                values = graph.run({graph.inputs[0].name: values})[graph.outputs[0].name]
            self._seen[key] = Embeddings(self._rows(values), key)
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
            seeing.vision += perf_counter() - started
        self._seen.move_to_end(key)
        return self._seen[key]

    def _rows(self, values: Array) -> NDArray[np.float32]:
        expected = (1, self._spec.prompt.image_tokens, self._spec.decoder.hidden)
        if values.shape != expected:
            raise EngineError(
                f"the vision part gave {list(values.shape)}, expected {list(expected)}",
                hint=f"edge verify {self.bundle.path}",
            )
        return np.ascontiguousarray(values[0], np.float32)


def _blind(bundle: Bundle) -> EngineError:
    decoder = bundle.file(bundle.manifest.part("decoder").files[0])
    beside = (str(bundle.file(file)) for file in bundle.manifest.companions if file.path.startswith("mmproj"))
    mmproj = next(beside, "FILE")
    return EngineError(
        f"{bundle.path} has no vision part: it was exported for llama.cpp's own programs. Builds of those without "
        "llama.cpp #25844 put the class token last, and from files without feature_layer run one layer too few; with "
        "both, a picture's rows have a cosine of about 0.91 to the right ones",
        hint=f"export again without --gguf-only, or: edge export {decoder} --mmproj {mmproj} -o OUT",
    )


class Chat:
    """Questions about the same pictures; what was said before is still in the decoder's cache."""

    def __init__(self, session: Session, pictures: tuple[Embeddings, ...], system: str | None) -> None:
        self.turns: list[Turn] = []  # those that were answered to the end
        self._session = session
        self._pictures = pictures
        self._system = system

    def ask(self, question: str, *, max_tokens: int = 256, sampling: Sampling = _GREEDY) -> str:
        """The whole answer; the session's `last` tells more about it."""
        return "".join(self.stream(question, max_tokens=max_tokens, sampling=sampling))

    def stream(self, question: str, *, max_tokens: int = 256, sampling: Sampling = _GREEDY) -> Iterator[str]:
        """The answer in pieces. A question whose answer is not read to its end, or fails, is not kept."""
        started = perf_counter()
        turn = Turn.about(question, () if self.turns else self._pictures)
        answer = yield from self._session._answer(
            [*self.turns, turn], self._system, max_tokens, sampling, started, _Seeing()
        )
        # As the model wrote it, so that the cache holds it; but not with the stop string that ended it.
        whole = self._session.tokenizer.decode(answer.token_ids) == answer.text
        self.turns.append(replace(turn, answer=answer.text, answer_ids=answer.token_ids if whole else None))
