"""One answer, on the engines' thread: events come out as it is made."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import ContextError, UsageError
from edge.inference.generate import Answer
from edge.inference.guide import Guide
from edge.inputs.tokenizer import Tokenizer
from edge.inputs.views import Views
from edge.server.errors import ApiError, Gone, told
from edge.server.models import Model, turned
from edge.server.request import Ask
from edge.server.work import Place
from edge.types import Embeddings

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenScore:
    spelling: bytes
    logprob: float  # natural, of the model's own distribution, whatever the sampling
    top: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class Text:
    text: str
    scores: tuple[TokenScore, ...] = ()  # of the tokens since the text before


@dataclass(frozen=True)
class Done:
    answer: Answer
    timings: dict[str, float]

    @property
    def finish_reason(self) -> str:
        return "stop" if self.answer.stop_reason == "stop" else "length"

    @property
    def usage(self) -> dict[str, Any]:
        prompt, made = self.answer.prompt_tokens, self.answer.generated_tokens
        details = {"cached_tokens": self.answer.cached_tokens, "image_tokens": self.answer.image_tokens}
        return {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
            "prompt_tokens_details": details,
        }


Event = Text | Done | ApiError
Emit = Callable[[Event], None]


@dataclass(frozen=True)
class Pixels:
    """A picture that is not encoded yet."""

    key: str  # of its file
    views: Views


@dataclass
class Prepared:
    """A request whose pictures are read. Times in seconds, `arrived` and `submitted` by perf_counter."""

    ask: Ask
    model: Model
    arrived: float
    pictures: list[Embeddings | Pixels] = field(default_factory=list)
    image_seconds: float = 0.0
    vision_seconds: float = 0.0
    submitted: float = 0.0
    positions: int = 0  # of the prompt
    guide: Guide | None = None  # what holds the answer to the request's constraint

    def hold(self, guide: Guide | None) -> None:
        """Raises ApiError where the shortest answer that the guide allows has no room."""
        wanted, context = self.ask.constraint, self.model.session.plan.context
        if guide is None or wanted is None:
            return
        try:
            guide.require_room(self.ask.max_tokens, context + 1 - self.positions, context)
        except ContextError as error:
            raise ApiError(400, error.message, param=wanted.where, code="context_length_exceeded") from error
        except UsageError as error:
            raise ApiError(400, error.message, param=wanted.where) from error
        self.guide = guide

    def show(self, picture: Embeddings | Pixels) -> None:
        """The next of its pictures. Before it is encoded, it counts in all its views. Raises ApiError where they do not
        fit the model, or leave an answer that is held to a constraint no room."""
        self.pictures.append(picture)
        views = [one.views if isinstance(one, Pixels) else one for one in self.pictures]
        if not isinstance(views[-1], Views) or len(views[-1].pixels) > 1:
            self.positions = self.model.positions(self.ask.conversation, views)
            self.hold(self.guide)

    def encoded(self, picture: Embeddings | Pixels) -> Embeddings:
        if isinstance(picture, Embeddings):
            return picture
        began = perf_counter()
        found = self.model.encode(picture.key, picture.views)
        self.vision_seconds += perf_counter() - began
        return found


def answer(prepared: Prepared, place: Place, emit: Emit) -> None:
    """Text after text, then Done; or an ApiError. Ends within a token once `place` is left."""
    try:
        emit(_answered(prepared, place, emit))
    except Gone:
        return
    except Exception as error:
        found = told(error)
        if found.status >= 500:
            _LOG.exception("%s: an answer failed", prepared.model.name)
        emit(found)


def _answered(prepared: Prepared, place: Place, emit: Emit) -> Done:
    ask, model, begun = prepared.ask, prepared.model, perf_counter()
    images = []
    for picture in prepared.pictures:
        _require(place)
        images.append(prepared.encoded(picture))
    _require(place)
    scores = _Scores(model.session.tokenizer, ask.top_logprobs)

    def on_token(token: int, logits: NDArray[np.float32]) -> None:
        _require(place)
        scores.add(token, logits)

    asked = perf_counter()
    stream = model.session.converse(
        turned(ask.conversation, images),
        max_tokens=ask.max_tokens,
        system=ask.conversation.system,
        sampling=ask.sampling,
        stop=ask.stop,
        on_token=on_token,
        guide=prepared.guide,
    )
    while True:
        try:
            text = next(stream)
        except StopIteration as end:
            if rest := scores.take():
                emit(Text("", rest))
            return Done(end.value, _timings(prepared, end.value, begun, asked))
        emit(Text(text, scores.take()))


def _require(place: Place) -> None:
    if place.gone:
        raise Gone


def _timings(prepared: Prepared, answer: Answer, begun: float, asked: float) -> dict[str, float]:
    """Milliseconds. `ttft_ms` is from the request's arrival, the queue included."""
    times = answer.timings
    found = {
        "queue_ms": 1e3 * (begun - prepared.submitted),
        "image_ms": 1e3 * prepared.image_seconds,
        "vision_ms": 1e3 * prepared.vision_seconds,
        "prefill_ms": times.prefill_ms,
        "ttft_ms": 1e3 * (asked - prepared.arrived) + times.ttft_ms,
        "decode_ms": times.decode_ms,
        "decode_tok_s": times.decode_tok_s,
    }
    return {name: round(value, 3) for name, value in found.items()}


class _Scores:
    """Probabilities of the tokens that were made, where they are wanted."""

    def __init__(self, tokenizer: Tokenizer, top: int | None) -> None:
        self._tokenizer = tokenizer
        self._top = top
        self._found: list[TokenScore] = []

    def add(self, token: int, logits: NDArray[np.float32]) -> None:
        if self._top is None:
            return
        values = logits.astype(np.float64)
        values -= values.max()
        values -= np.log(np.exp(values).sum())
        best = np.argsort(-values, kind="stable")[: self._top]
        top = tuple(self._score(int(i), values) for i in best)
        self._found.append(replace(self._score(token, values), top=top))

    def take(self) -> tuple[TokenScore, ...]:
        found, self._found = tuple(self._found), []
        return found

    def _score(self, token: int, values: NDArray[np.float64]) -> TokenScore:
        # JSON has no infinity, and OpenAI's own floor for what cannot be is this.
        return TokenScore(self._tokenizer.spelling(token), max(float(values[token]), -9999.0))
