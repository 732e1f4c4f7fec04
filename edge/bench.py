"""How fast a bundle is on this machine, stage by stage, and how much of that is our own."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edge import image
from edge.bundle import Bundle
from edge.errors import UsageError
from edge.golden import Golden
from edge.prompt import Turn, segments
from edge.session import Session, load
from edge.types import CacheKind, Segment, Tokens

T = TypeVar("T")
UNITS = {
    "load": "ms",
    "image": "ms",
    "vision": "ms",
    "prefill": "tokens/s",
    "first token": "ms",
    "second question": "ms",
    "decode": "tokens/s",
    "overhead": "ms/token",
}


@dataclass(frozen=True)
class Stage:
    name: str
    unit: str
    median: float
    min: float
    max: float


@dataclass(frozen=True)
class Bench:
    """`overhead` is a token's time in our own code: a session whose engine computes nothing."""

    stages: tuple[Stage, ...]
    repeats: int
    prompt_tokens: int
    image_tokens: int
    generated_tokens: int
    threads: int
    peak_rss_mb: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def bench(
    path: Path,
    *,
    picture: image.Source | None = None,
    max_tokens: int = 64,
    repeats: int = 5,
    threads: int = 0,
    cache: CacheKind | None = None,
) -> Bench:
    """Ask the golden question about the golden picture, or about `picture`, in a new session each time.

    One repeat more than `repeats` is run, and not counted. Raises EdgeError as the session does.
    """
    if max_tokens < 1 or repeats < 1:
        raise UsageError("there is nothing to measure", hint="-n and --repeats are at least 1")
    bundle = Bundle.open(path)
    source = Golden.load(bundle.file(bundle.manifest.golden)).picture if picture is None else picture
    once = _Once(path, bundle.manifest.golden_prompt["question"], source, max_tokens, threads, cache)
    found: dict[str, list[float]] = {name: [] for name in UNITS}
    for repeat in range(repeats + 1):
        measured = {**once.stages(), "overhead": once.overhead()}
        if repeat:
            for name, value in measured.items():
                found[name].append(value)
    return Bench(
        stages=tuple(_stage(name, found[name]) for name in UNITS),
        repeats=repeats,
        prompt_tokens=once.prompt_tokens,
        image_tokens=bundle.manifest.spec.prompt.image_tokens,
        generated_tokens=once.generated,
        threads=once.threads,
        peak_rss_mb=peak_rss_mb(),
    )


class _Once:
    def __init__(
        self, path: Path, question: str, source: image.Source, max_tokens: int, threads: int, cache: CacheKind | None
    ) -> None:
        self.path, self.question, self.source = path, question, source
        self.max_tokens, self.threads, self.cache = max_tokens, threads, cache
        self.prompt_tokens = self.generated = 0

    def stages(self) -> dict[str, float]:
        session, opened_ms = timed(lambda: load(self.path, threads=self.threads, cache=self.cache))
        with session:
            _, waited_ms = timed(lambda: session.decoder)
            spec = session.bundle.manifest.spec
            # First calls pay for pages and buffers, and wait for the hashes of the files: that is not what is asked.
            session.encode_pixels(np.zeros((1, 3, spec.image.size, spec.image.size), np.float32))
            pixels, image_ms = timed(lambda: image.pixels(self.source, spec.image))
            rows, vision_ms = timed(lambda: session.encode_pixels(pixels))
            prompt = segments(spec.prompt, session.tokenizer, [Turn(self.question, (rows,))])
            self.prompt_tokens = sum(map(len, prompt))
            self.generated = min(self.max_tokens, session.plan.context - self.prompt_tokens)
            self.threads = session.plan.threads
            second_ms = self._second(session)
            prefill_ms, decode_ms = self._decode(session, prompt)
        return {
            "load": opened_ms + waited_ms,
            "image": image_ms,
            "vision": vision_ms,
            "prefill": 1000 * self.prompt_tokens / prefill_ms,
            "first token": image_ms + vision_ms + prefill_ms,
            "second question": second_ms,
            "decode": 1000 * self.generated / decode_ms,
        }

    def _second(self, session: Session) -> float:
        """Milliseconds from another question about the same picture to its first token. Also the decoder's warm-up:
        first passes pay for pages and buffers."""
        session.ask(self.source, self.question, max_tokens=1)
        another = " ".join(reversed(self.question.split()))  # as long, and different from its first word on
        session.ask(self.source, another, max_tokens=1)
        return session.last.timings.ttft_ms

    def _decode(self, session: Session, prompt: Sequence[Segment]) -> tuple[float, float]:
        """Greedy and never stopped, so that each repeat does the same work."""
        decoder = session.decoder
        decoder.rewind(0)
        logits, prefill_ms = timed(lambda: decoder.extend(prompt))
        start = time.perf_counter()
        for _ in range(self.generated):
            logits = decoder.extend([Tokens((int(logits.argmax()),))])
        return prefill_ms, 1000 * (time.perf_counter() - start)

    def overhead(self) -> float:
        with load(self.path, threads=self.threads, engine="null") as session:
            _, whole_ms = timed(lambda: session.ask(self.source, self.question, max_tokens=self.max_tokens))
            answer = session.last
            return (whole_ms - answer.timings.ttft_ms) / max(1, answer.generated_tokens)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What the work gives, and its milliseconds."""
    start = time.perf_counter()
    result = work()
    return result, 1000 * (time.perf_counter() - start)


def peak_rss_mb() -> float:
    """The most memory that this process has held, in MB; 0 where the system does not say."""
    if sys.platform == "linux":  # getrusage would count what the parent held before exec
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
    if sys.platform == "win32":
        return 0.0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _stage(name: str, values: Sequence[float]) -> Stage:
    return Stage(name, UNITS[name], statistics.median(values), min(values), max(values))
