"""The measurements of one benchmark process, as events: plain data for the process that started it."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from edge.bench.request import GENERATED, PROMPT, Request
from edge.bundle.golden import Golden
from edge.bundle.manifest import Bundle
from edge.devices.peak_memory import peak_bytes
from edge.engines import UNKNOWN, kernels
from edge.errors import ParityError, UsageError
from edge.inference.session import Session, load
from edge.inputs import calibration, image
from edge.inputs.prompt import Turn, segments
from edge.types import Embeddings, Segment, Tokens
from edge.verify import compare, verify

WINDOW = 1_000_000_000  # nanoseconds
Event = dict[str, Any]
Clock = Callable[[], int]  # nanoseconds; one that other processes share, and that never goes back


def loading(request: Request, clock: Clock = time.perf_counter_ns) -> Iterator[Event]:
    """Open the bundle once, until a question could be answered."""
    start = clock()
    with _open(request) as session:
        session.decoder  # noqa: B018  waits until it is open
        yield _sample("load", start, clock() - start)


def measuring(request: Request, clock: Clock = time.perf_counter_ns) -> Iterator[Event]:
    """Every row but loading, each after one run that is not counted. Raises EdgeError as the session does."""
    golden = Golden.load(_golden(request))
    with _open(request) as session:
        stages = _Stages(session, request, golden, clock)
        yield {
            "event": "ready",
            "plan": session.plan.to_json(),
            "kernels": {name: " ".join(kernels(name)) or UNKNOWN for name in session.plan.engines},
            "prompt_tokens": sum(map(len, stages.prompt)),
            "image_tokens": sum(len(s) for s in stages.prompt if isinstance(s, Embeddings)),
        }
        session.ask(stages.source, stages.question, max_tokens=stages.answer)
        yield {"event": "peak", "bytes": peak_bytes()}
        yield {"event": "agreement", **_agreement(session, golden)}
        yield from stages.events()
    yield from _own_code(request, stages, clock)


def proving(request: Request) -> Iterator[Event]:
    """The golden sample, replayed by the request's engine and threads."""
    found = verify(Bundle.open(request.bundle), engine=request.engine, threads=request.threads, isa=request.isa)
    yield {"event": "proof", "report": found.to_json()}


def _open(request: Request) -> Session:
    return load(
        request.bundle,
        threads=request.threads,
        engine=request.engine,
        cache=request.cache,
        isa=request.isa,
        provider=request.provider,
        gpu_layers=request.gpu_layers,
        debug=request.debug,
    )


def _golden(request: Request) -> Path:
    bundle = Bundle.open(request.bundle)
    return bundle.file(bundle.manifest.golden)


class _Stages:
    def __init__(self, session: Session, request: Request, golden: Golden, clock: Clock) -> None:
        manifest = session.bundle.manifest
        self.session, self.request, self.clock, self.spec = session, request, clock, manifest.spec
        self.sees = manifest.sees
        self.question: str = manifest.golden_prompt["question"]
        self.source = self._source(golden) if self.sees else None
        self.questions = self._questions()
        rows = (session.encode_image(self.source),) if self.source is not None else ()
        self.prompt = segments(self.spec.prompt, session.tokenizer, [Turn.about(self.question, rows)])
        room = session.plan.context - max(request.n_depth)
        self.n_prompt = request.n_prompt or (max(1, min(PROMPT, room)),)
        self.n_gen = request.n_gen or (max(1, min(GENERATED, room)),)
        self.answer = max(self.n_gen) or max(1, min(GENERATED, room))  # its tokens, where whole answers are measured
        if (most := max(*self.n_prompt, *self.n_gen)) > room:
            raise UsageError(
                f"{most} tokens after {max(request.n_depth)} are more than a context of {session.plan.context}",
                hint="smaller -p, -n and -d",
            )

    def _source(self, golden: Golden) -> bytes:
        if self.request.picture is not None:
            image.open_image(self.request.picture)  # an unreadable one is told in the words for pictures
            return Path(self.request.picture).read_bytes()
        file = io.BytesIO()
        Image.fromarray(golden.picture).save(file, "PNG")
        return file.getvalue()

    def _questions(self) -> list[calibration.Record]:
        """Those whose answers are known."""
        if self.request.questions is None:
            return []
        if not self.sees:
            raise UsageError("questions about pictures, to a bundle that sees none", hint="leave --questions away")
        return calibration.answered(Path(self.request.questions))

    def events(self) -> Iterator[Event]:
        if self.source is not None:
            yield from self._seeing(self.source)
        for depth, count in itertools.product(self.request.n_depth, filter(None, self.n_prompt)):
            yield from self._prefill(count, depth)
        for depth, count in itertools.product(self.request.n_depth, filter(None, self.n_gen)):
            yield from self._decode(count, depth)
        yield from self._first_token()
        if self.source is not None:
            yield from self._second_question(self.source)
        if self.request.sustained:
            yield from self._sustained()
        yield from self._asked()

    def _seeing(self, source: bytes) -> Iterator[Event]:
        picture = image.open_image(source)
        views = self.session.views(picture)
        yield from self._repeated("picture decode", lambda: image.open_image(source))
        yield from self._repeated("preprocess", lambda: self.session.views(picture))
        yield from self._repeated("vision encode", lambda: self.session.encode_pixels(views), self.session.forget)

    def _prefill(self, count: int, depth: int) -> Iterator[Event]:
        prompt = first(self.prompt, count)
        facts = {"n_prompt": count, "n_depth": depth}
        yield from self._repeated(
            _at(f"pp{count}", depth), lambda: self.session.decoder.extend(prompt), lambda: self._go_to(depth), **facts
        )

    def _decode(self, count: int, depth: int) -> Iterator[Event]:
        self._generate(1, depth)
        for _ in range(self.request.repetitions):
            self._go_to(depth)
            yield self._timed(_at(f"tg{count}", depth), lambda: self._generate(count), n_gen=count, n_depth=depth)

    def _first_token(self) -> Iterator[Event]:
        for repetition in range(self.request.repetitions + 1):
            self.session.forget()
            start = self.clock()
            self.session.ask(self.source, self.question, max_tokens=1)
            times = self.session.last.timings
            if repetition:
                stages = {"picture": times.image_ms, "vision": times.vision_ms, "prefill": times.prefill_ms}
                yield {**_sample("first token", start, _ns(times.ttft_ms)), "stages_ns": _each_ns(stages)}

    def _second_question(self, source: bytes) -> Iterator[Event]:
        another = f"And {self.question}"  # differs from the first word on
        for repetition in range(self.request.repetitions + 1):
            self.session.ask(source, self.question, max_tokens=1)
            start = self.clock()
            self.session.ask(source, another, max_tokens=1)
            if repetition:
                yield _sample("second question", start, _ns(self.session.last.timings.ttft_ms))

    def _sustained(self) -> Iterator[Event]:
        """Answers of the first length, one after another, without a rest; told of about once a second."""
        count, depth = self.n_gen[0] or self.answer, self.request.n_depth[0]
        end = self.clock() + int(1e9 * self.request.sustained)
        while (start := self.clock()) < end:
            tokens = spent = 0
            while spent < WINDOW and self.clock() < end:
                self._go_to(depth)
                spent += self._timed("", lambda: self._generate(count))["ns"]
                tokens += count
            yield {**_sample(f"sustained tg{count}", start, spent), "tokens": tokens}

    def _asked(self) -> Iterator[Event]:
        """Each once."""
        test = f"{len(self.questions)} questions"
        for record in self.questions:
            start = self.clock()
            given = self.session.ask(str(record.picture), record.question)
            right = calibration.same(given, record.answer)
            yield {**_sample(test, start, self.clock() - start), "right": right}

    def _repeated(
        self, test: str, work: Callable[[], object], before: Callable[[], object] = lambda: None, **facts: int
    ) -> Iterator[Event]:
        before()
        work()
        for _ in range(self.request.repetitions):
            before()
            yield self._timed(test, work, **facts)

    def _timed(self, test: str, work: Callable[[], object], **facts: int) -> Event:
        start = self.clock()
        work()
        return {**_sample(test, start, self.clock() - start), **facts}

    def _go_to(self, depth: int) -> None:
        self.session.decoder.rewind(0)
        if depth:
            self.session.decoder.extend(first(self.prompt, depth))

    def _generate(self, count: int, depth: int | None = None) -> None:
        """Greedy and never stopped, so that each repetition does the same work."""
        if depth is not None:
            self._go_to(depth)
        decoder, token = self.session.decoder, self.spec.prompt.bos_id or 0
        for _ in range(count):
            token = int(decoder.extend([Tokens((token,))]).argmax())


def _own_code(request: Request, stages: _Stages, clock: Clock) -> Iterator[Event]:
    """A token's time in our own code: a session whose engine computes nothing."""
    with load(request.bundle, threads=request.threads, engine="null") as session:
        for repetition in range(request.repetitions + 1):
            session.forget()
            start = clock()
            session.ask(stages.source, stages.question, max_tokens=stages.answer)
            whole = clock() - start - _ns(session.last.timings.ttft_ms)
            if repetition:
                yield _sample("own code per token", start, whole // max(1, session.last.generated_tokens))


def first(prompt: Sequence[Segment], count: int) -> list[Segment]:
    """The first `count` positions of a prompt; of one that is shorter, its last text again and again."""
    found: list[Segment] = []
    for segment in itertools.chain(prompt, itertools.repeat(prompt[-1])):
        if count <= 0:
            break
        if isinstance(segment, Tokens):
            found.append(Tokens(segment.ids[:count]))
        else:
            found.append(Embeddings(segment.rows[:count], f"{segment.key}[:{count}]"))
        count -= len(segment)
    return found


def _agreement(session: Session, golden: Golden) -> dict[str, float]:
    """With torch in fp32: of the prompt's last logits the cosine, of the greedy tokens the share that is equal. Raises
    ParityError where the bundle computes NaN or infinity: its speed would be that of no model."""
    report = compare(session, golden)
    if stages := [row.stage for row in report.rows if not row.finite]:
        raise ParityError(
            f"{session.bundle.path} computes NaN or infinity, or its golden sample holds it: "
            + ", ".join(dict.fromkeys(stages)),
            hint=f"edge verify {session.bundle.path}, then export the bundle again",
        )
    return {
        "agreement_cosine": report.error("prefill", "fp32")["cosine"],
        "agreement_tokens": report.error("tokens", "fp32")["tokens"],
    }


def _sample(test: str, start: int, ns: int) -> Event:
    return {"event": "sample", "test": test, "start": start, "ns": ns}


def _at(test: str, depth: int) -> str:
    return f"{test} @ d{depth}" if depth else test


def _ns(milliseconds: float) -> int:
    return round(1e6 * milliseconds)


def _each_ns(milliseconds: dict[str, float]) -> dict[str, int]:
    return {name: _ns(value) for name, value in milliseconds.items()}
