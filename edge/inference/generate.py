"""Token generation: prefill, then one token at a time; what the KV cache holds already is reused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edge.decoders.base import too_long
from edge.errors import ContextError, EngineError, UsageError
from edge.inference.constant_prefix import ConstantPrefix
from edge.inference.guide import Guide, GuidedSampler
from edge.inference.kept import WORTH, Kept
from edge.inference.prefix import Held, Prefix, common, positions
from edge.inference.sampling import Sampler, Sampling
from edge.inference.stop import StopFilter
from edge.inputs.tokenizer import Tokenizer
from edge.spec import PromptSpec
from edge.types import Decoder, Embeddings, Segment, Tokens

StopReason = Literal["stop", "length", "context"]
OnToken = Callable[[int, NDArray[np.float32]], None]  # a token, and the logits that it was picked from


@dataclass(frozen=True)
class Timings:
    load_ms: float  # opening the bundle, once
    image_ms: float  # reading the images into pixels, as far as the question waited for it
    vision_ms: float  # pixels into embeddings; 0 for images seen before
    prefill_ms: float  # the part of the prompt that was not in the cache
    ttft_ms: float  # from the call to the first token
    decode_ms: float  # the tokens after the first, without the time that the caller took between them
    decode_tok_s: float


@dataclass(frozen=True)
class Answer:
    text: str
    token_ids: tuple[int, ...]  # without the id that ended it
    stop_reason: StopReason
    prompt_tokens: int  # all positions of the prompt, those of images too
    image_tokens: int
    cached_tokens: int  # of the prompt, that were in the cache already
    generated_tokens: int
    timings: Timings


class TextGenerator:
    """Owns a decoder. One answer at a time: beginning another ends the one before."""

    def __init__(
        self, decoder: Decoder, spec: PromptSpec, tokenizer: Tokenizer, context: int, ready: Callable[[], None]
    ) -> None:
        """`ready` is called before the first text of an answer is let out; it may raise."""
        self._decoder = decoder
        self._spec = spec
        self._tokenizer = tokenizer
        self._context = context
        self._ready = ready
        self._held: list[Held] = []  # what the decoder's cache holds, position by position
        self._answers = 0
        self._kept: Kept | None = None

    def keep(self, kept: Kept) -> None:
        """Where what an answer leaves of another conversation goes, and is taken up again."""
        self._kept = kept if kept.limit else None

    def release(self) -> Decoder:
        """The decoder, for a caller who extends and rewinds it: nothing that it remembers is used again."""
        self._answers += 1
        self._held = []
        return self._decoder

    def snapshot(self, of: Sequence[Segment] | None = None) -> Prefix | None:
        """What the KV cache holds, copied; None where the engine keeps it out of reach. `of`: what it has in common
        with these, the rest is forgotten; None where that is nothing. Raises EngineError."""
        if self._decoder.layout is None:
            return None
        held = tuple(self._held[: self._decoder.position])
        if of is not None:
            held = held[: common(held, [position for segment in of for position in positions(segment)])]
            if len(held) < self._decoder.position:
                self._answers += 1  # an answer that is still read has lost what it stood on
            if not held:
                return None
        self._decoder.rewind(len(held))  # somebody else may have extended it
        return Prefix(held, self._decoder.snapshot())

    def restore(self, prefix: Prefix) -> None:
        """Hold what a snapshot of the same bundle does instead, and end an answer on its way. Raises EngineError on one
        that the decoder does not take; it then holds nothing."""
        self.release().restore(prefix.snapshot)
        self._held = list(prefix.held)

    def take_up(self, prefix: Prefix) -> None:
        """As `restore`, of what a file holds: an engine that keeps its KV cache otherwise holds nothing then."""
        with contextlib.suppress(EngineError):
            self.restore(prefix)

    def begin(self, constant: ConstantPrefix) -> Prefix | None:
        """Hold what prompts begin with, computed where no file has it; a copy of it. None where the engine keeps its KV
        cache out of reach. Raises EngineError."""
        if self._decoder.layout is None:
            return None
        self.release().rewind(0)
        if (found := constant.best(constant.ids, len(constant.ids) - 1)) is not None:
            self.take_up(found)
        if not self._held:
            self._decoder.extend((Tokens(constant.ids),))
            self._held = list(constant.ids)
        return self.snapshot()

    def stream(
        self,
        segments: Sequence[Segment],
        *,
        max_tokens: int,
        sampling: Sampling,
        started: float,
        stop: Sequence[str] = (),
        on_token: OnToken | None = None,
        guide: Guide | None = None,
        constant: ConstantPrefix | None = None,
    ) -> Generator[str, None, Answer]:
        """Yields text and returns the Answer, whose timings know nothing of loading and images.

        - `started`: when the call came, by perf_counter.
        - `stop`: texts that end the answer, beside the model's own.
        - `on_token`: called with each token that was picked and the logits f32 [vocab] it was picked from, before its
          text is let out. What it raises ends the answer.
        - `guide`: what the answer is held to. It ends the answer, and no text does; `stop` beside it is a UsageError.
        - `constant`: what the prompt may begin with, taken where the decoder holds less of it.

        Raises, before anything is computed, ContextError when the prompt does not fit, or the shortest answer that the
        guide allows beside it, and UsageError when that has more than `max_tokens`.
        """
        if max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}", hint="1 or more")
        begun, wanted = perf_counter(), self._wanted(segments)
        sampler: Sampler | GuidedSampler = Sampler(sampling)
        room = self._context + 1 - len(wanted)  # the last token goes through no decoder
        if guide is not None:
            guide.require_room(max_tokens, room, self._context)
            sampler = GuidedSampler(Sampler(sampling), guide, self._spec.stop_ids, min(room, max_tokens))
        stops = self._stops(stop, guide)
        self._take_up_most(wanted, constant)
        self._answers += 1
        run = _Run(self._answers, begun)
        logits, cached = self._prefill(segments, wanted)
        run.prefilled = perf_counter()
        self._ready()
        prompt = [i for s in segments if isinstance(s, Tokens) for i in s.ids]
        images = sum(len(s) for s in segments if isinstance(s, Embeddings))
        text = self._tokenizer.stream()
        ids: list[int] = []
        pieces: list[str] = []
        for token in self._tokens(run, logits, sampler, prompt, on_token):
            ids.append(token)
            if piece := stops.push(text.push(token)):
                pieces.append(piece)
                yield piece
            if stops.stopped:
                break
            if len(ids) == max_tokens and not sampler.finished:
                run.reason = "length"
                break
        if guide is not None and guide.closed:
            run.reason = "length" if max_tokens <= room else "context"
        if rest := stops.push(text.finish()) + stops.finish():
            pieces.append(rest)
            yield rest
        return Answer(
            text="".join(pieces),
            token_ids=tuple(ids),
            stop_reason=run.reason,
            prompt_tokens=len(prompt) + images,
            image_tokens=images,
            cached_tokens=cached,
            generated_tokens=len(ids),
            timings=run.timings(started),
        )

    def _tokens(
        self,
        run: _Run,
        logits: NDArray[np.float32],
        sampler: Sampler | GuidedSampler,
        prompt: Sequence[int],
        on_token: OnToken | None,
    ) -> Iterator[int]:
        """Token after token, until the model ends its answer or the context is full. A token goes through the decoder
        only when the next one is asked for."""
        history = list(prompt)
        token = sampler.pick(logits, history)
        run.first = perf_counter()
        while token is not None and token not in self._spec.stop_ids:
            history.append(token)
            if on_token is not None:
                on_token(token, logits)
            yield token
            if sampler.finished:
                return
            if self._answers != run.number:
                raise UsageError(
                    "another question was asked before this answer ended", hint="read an answer to its end, or close it"
                )
            before = perf_counter()
            try:
                logits = self._append(token)
                token = sampler.pick(logits, history)
            except ContextError:
                run.reason = "context"
                return
            run.decode += perf_counter() - before
            run.steps += 1

    def _stops(self, stop: Sequence[str], guide: Guide | None) -> StopFilter:
        if guide is None:
            return StopFilter((*self._spec.stop_strings, *stop))
        if any(stop):
            raise UsageError(f"an answer of a {guide.kind} ends by itself, and not at a text", hint="leave stop out")
        return StopFilter(())

    def _wanted(self, segments: Sequence[Segment]) -> list[Held]:
        wanted = [held for segment in segments for held in positions(segment)]
        if not wanted:
            raise UsageError("the prompt is empty", hint="ask something")
        if len(wanted) > self._context:
            seen = [len(segment) for segment in segments if isinstance(segment, Embeddings)]
            divided = self._spec.views or any(count > self._spec.image_tokens for count in seen)
            raise too_long(len(wanted), self._context, sum(seen) if divided else 0)
        return wanted

    def _take_up_most(self, wanted: Sequence[Held], constant: ConstantPrefix | None) -> None:
        """Hold the prefix that has most of the prompt, and keep the conversation that the prompt leaves."""
        held = self._held[: self._decoder.position]
        same = common(held, wanted)
        better = None
        if (kept := self._kept) is not None:
            # Looked for before anything is added, which may push it out.
            better = kept.best(wanted, same + WORTH)
            if len(held) - same > WORTH and not kept.holds(held) and (prefix := self.snapshot()) is not None:
                kept.add(prefix)
        if better is None and constant is not None and self._decoder.layout is not None:
            better = constant.best(wanted, same + WORTH)
        if better is not None:
            self.take_up(better)

    def _prefill(self, segments: Sequence[Segment], wanted: list[Held]) -> tuple[NDArray[np.float32], int]:
        # The last position is computed anew in any case: its logits are what is asked for. A decoder that failed may
        # hold less than it did.
        same = min(common(self._held, wanted), len(wanted) - 1, self._decoder.position)
        self._held = wanted[:same]
        self._decoder.rewind(same)
        logits = self._decoder.extend(list(_after(segments, same)))
        self._held = wanted
        return logits, same

    def _append(self, token: int) -> NDArray[np.float32]:
        if len(self._held) >= self._context:
            raise too_long(len(self._held) + 1, self._context)
        logits = self._decoder.extend((Tokens((token,)),))
        self._held.append(token)
        return logits


@dataclass
class _Run:
    """One answer on its way; times are of perf_counter, `decode` in seconds."""

    number: int
    begun: float
    prefilled: float = 0.0
    first: float = 0.0
    decode: float = 0.0
    steps: int = 0
    reason: StopReason = "stop"

    def timings(self, started: float) -> Timings:
        return Timings(
            load_ms=0.0,
            image_ms=0.0,
            vision_ms=0.0,
            prefill_ms=1e3 * (self.prefilled - self.begun),
            ttft_ms=1e3 * (self.first - started),
            decode_ms=1e3 * self.decode,
            decode_tok_s=self.steps / self.decode if self.decode else 0.0,
        )


def _after(segments: Sequence[Segment], count: int) -> Iterator[Segment]:
    """The segments without their first `count` positions."""
    for segment in segments:
        if count >= len(segment):
            count -= len(segment)
        elif count == 0:
            yield segment
        elif isinstance(segment, Tokens):
            yield Tokens(segment.ids[count:])
            count = 0
        else:
            yield Embeddings(segment.rows[count:], segment.key, segment.first + count)
            count = 0
