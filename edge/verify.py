"""Verification: replays a bundle's golden sample through this machine's engines, stage by stage. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.bundle.golden import TOKENS, VIEWS, Golden, Outputs, References
from edge.bundle.manifest import Bundle
from edge.devices import detect
from edge.engines import evaluator_names
from edge.errors import BundleError
from edge.inference import flash
from edge.inference.session import Session, load
from edge.inputs import image
from edge.inputs.prompt import Turn, segments
from edge.planning.plan import Plan
from edge.spec import ImageSpec
from edge.types import Decoder, Embeddings, Segment, Tokens
from edge.units import format_size

_PICTURE = {"max_abs": 1e-4}  # a resize is exact; what remains is float arithmetic
_EXACT = {"tokens": 1.0}
_DISTANCES = ("max_abs", "cosine")
Ids = list[list[int] | None]  # None is the picture, or one view of it
CARD, CARD_COSINE = 10, 0.999
NOT_MEASURED = "on a card: the bounds are derived, not measured"


@dataclass(frozen=True)
class Row:
    """One stage compared with one reference. A row without a tolerance tells what quantising costs: it fails only where
    the comparison is not finite, for that is no cost."""

    stage: str  # picture, prompt, vision, prefill, tokens; views.vision and so on: of the picture in all its views
    # golden; stored: torch on the same stored weights, its activations in float32 or rounded as the format's kernels
    # do, whichever is nearer; fp32: torch on the source's weights; checkpoint: golden itself compared with torch anew;
    # recorded: what an adopted part answered where the bundle was made
    against: str
    error: Mapping[str, float]
    tolerance: Mapping[str, float]

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, self.error.values()))

    @property
    def ok(self) -> bool:
        if not self.finite:
            return False
        for name, bound in self.tolerance.items():
            found = self.error[name]
            # Written so that NaN fails.
            if not (found <= bound if name == "max_abs" else found >= bound):
                return False
        return True


@dataclass(frozen=True)
class Report:
    rows: tuple[Row, ...]
    evaluated: tuple[str, ...] = ()  # formats that no engine ran, but an evaluator computed
    adopted: tuple[str, ...] = ()  # roles whose part is kept as it was published: compared with itself, and not proven
    providers: tuple[str, ...] = ()  # what computed, where that is not the CPU alone
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows)

    def error(self, stage: str, against: str) -> Mapping[str, float]:
        return next(row.error for row in self.rows if (row.stage, row.against) == (stage, against))

    def to_json(self) -> dict[str, Any]:
        # JSON has no NaN: null stands for what is not finite.
        errors = [{name: e if math.isfinite(e) else None for name, e in row.error.items()} for row in self.rows]
        rows = [{**asdict(row), "error": e, "ok": row.ok} for row, e in zip(self.rows, errors, strict=True)]
        told = {name: getattr(self, name) for name in ("evaluated", "adopted", "providers", "notes")}
        return {"ok": self.ok, "rows": rows, **{name: list(found) for name, found in told.items() if found}}


def verify(
    bundle: Bundle,
    *,
    engine: str | None = None,
    threads: int = 0,
    isa: str | None = None,
    provider: str | None = None,
    gpu_layers: int | None = None,
) -> Report:
    """Hash every file, then compare each stage with golden; `engine` goes before the device's own. Raises EdgeError
    when a stage cannot run at all."""
    bundle.check()
    golden = _golden(bundle)
    opened = partial(
        load,
        bundle.path,
        engine=engine,
        threads=threads,
        isa=isa,
        provider=provider,
        gpu_layers=gpu_layers,
        evaluators=True,
    )
    with opened() as session:
        plan = session.plan
        if not flash.splits_on_card(plan):
            return compare(session, golden)
    with opened(flash=False) as session:
        found = compare(session, golden)
    return _with_flash(bundle, plan, found, partial(opened, flash=True), golden) if found.ok else found


def _golden(bundle: Bundle) -> Golden:
    """Raises BundleError where it takes memory that the model needs."""
    entry, free = bundle.manifest.golden, detect().memory_bytes
    if entry.bytes > free // 4:
        raise BundleError(
            f"{entry.path} takes {format_size(entry.bytes)}, and the machine has {format_size(free)} free",
            hint="verify it on a larger machine",
        )
    return Golden.load(bundle.file(entry))


def _with_flash(bundle: Bundle, plan: Plan, found: Report, opened: Callable[[], Session], golden: Golden) -> Report:
    """The same with what flash attention computes: it is used from then on where that is equal."""
    with opened() as session:
        again = compare(session, golden)
    flash.remember(bundle.path, plan, again.ok)
    said = "equal, and used on this card" if again.ok else "not equal here, and not used"
    return replace(found, notes=(*found.notes, f"flash attention: {said}"))


def compare(session: Session, golden: Golden) -> Report:
    manifest = session.bundle.manifest
    part = manifest.part("decoder")
    rows = [
        Row("picture", "golden", _picture_error(golden, manifest.spec.image), _PICTURE),
        Row("prompt", "golden", {"tokens": _prompt_agreement(session, golden)}, _EXACT),
        *_seeing(session, golden),
    ]
    for before, of, prompt in asked(manifest.golden_prompt, golden):
        rows += _answering(session, *_replay(session, of.fp32.image_embeds[0], prompt), of, before)
    evaluated = {choice.part.format for choice in session.plan.choices if choice.engine in evaluator_names()}
    plan = session.plan
    computing = tuple(f"{choice.role} {choice.provider}" for choice in plan.choices) if plan.on_card else ()
    notes = (*plan.notes, *((NOT_MEASURED,) if plan.on_card else ()))
    adopted = part.covers if part.adopted else ()
    return Report(tuple(rows), tuple(sorted(evaluated)), adopted, computing, notes)


def distance(found: NDArray[np.float32], reference: NDArray[np.float32]) -> dict[str, float]:
    """Largest absolute difference, and cosine of the whole arrays: of zeros, which have no direction, 1 to zeros and 0
    to all else. Both are NaN where either array holds NaN or infinity. Raises BundleError where the shapes differ."""
    _require_shape(found, reference)
    a, b = found.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return {"max_abs": math.nan, "cosine": math.nan}
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / norms if norms else float(not (a.any() or b.any()))
    return {"max_abs": float(np.abs(a - b).max()), "cosine": cosine}


def asked(told: Mapping[str, Any], golden: Golden) -> Iterator[tuple[str, Golden | References, Ids]]:
    """The golden question about the picture as one view, and as the bundle divides it: what its stages begin with, the
    references, and the ids around the picture."""
    yield "", golden, told["segments"]
    if golden.divided is not None:
        if "views" not in told:
            raise BundleError(
                "the golden sample has several views, and the manifest no prompt for them",
                hint="export the bundle again",
            )
        yield VIEWS, golden.divided, told["views"]["segments"]


def _nearest(found: NDArray[np.float32], golden: Golden | References, output: str) -> tuple[dict[str, float], Outputs]:
    """The distance to the outputs on the stored weights, and those outputs: of a part whose kernels round activations
    where a processor has the instructions, and do not on another, the nearer ones."""
    outputs = [golden.stored, *([golden.rounded] if golden.rounded else [])]
    compared = [(distance(found, getattr(one, output)), one) for one in outputs]
    # One that is not finite is taken, and so fails: no golden sample holds NaN.
    return max(compared, key=lambda pair: math.inf if math.isnan(pair[0]["cosine"]) else pair[0]["cosine"])


def _seeing(session: Session, golden: Golden) -> Iterator[Row]:
    """None of a bundle that is a decoder only."""
    manifest = session.bundle.manifest
    if manifest.sees:
        rows = session.encode_pixels(golden.pixel_values).rows[None]
        bounds = _bounds(session, "vision", _DISTANCES)
        yield Row("vision", "stored", _nearest(rows, golden, "image_embeds")[0], bounds)
        yield Row("vision", "fp32", distance(rows, golden.fp32.image_embeds), {})
        if golden.divided is not None:
            rows = session.encode_pixels(session.views(golden.picture)).rows[None]
            yield Row(f"{VIEWS}vision", "stored", _nearest(rows, golden.divided, "image_embeds")[0], bounds)
            yield Row(f"{VIEWS}vision", "fp32", distance(rows, golden.divided.fp32.image_embeds), {})


def _answering(
    session: Session,
    logits: NDArray[np.float32],
    tokens: NDArray[np.int32],
    of: Golden | References,
    before: str,
) -> Iterator[Row]:
    """Of an adopted decoder golden holds what it answered itself, maybe on a processor that rounds otherwise."""
    bounds, agreement = (_bounds(session, "decoder", measures) for measures in (_DISTANCES, tuple(_EXACT)))
    if session.bundle.manifest.part("decoder").adopted:
        yield Row(f"{before}prefill", "recorded", distance(logits, of.fp32.logits), bounds)
        yield Row(f"{before}tokens", "recorded", {"tokens": _agreement(tokens, of.fp32.tokens)}, agreement)
        return
    prefill, stored = _nearest(logits, of, "logits")
    yield Row(f"{before}prefill", "stored", prefill, bounds)
    yield Row(f"{before}prefill", "fp32", distance(logits, of.fp32.logits), {})
    yield Row(f"{before}tokens", "stored", {"tokens": _agreement(tokens, stored.tokens)}, agreement)
    yield Row(f"{before}tokens", "fp32", {"tokens": _agreement(tokens, of.fp32.tokens)}, {})


def shown(prompt: Ids, rows: NDArray[np.float32]) -> list[Segment]:
    """Token ids, and the rows `[N, hidden]` of the picture: as many of them for each None. Raises BundleError where
    they are not as many."""
    each, left = divmod(len(rows), max(1, prompt.count(None)))
    if left or not each:
        raise BundleError(
            f"the golden sample has {len(rows)} embeddings for {prompt.count(None)} views",
            hint="export the bundle again",
        )
    views = (Embeddings(rows[at : at + each], "golden", at) for at in range(0, len(rows), each))
    return [next(views) if ids is None else Tokens(tuple(ids)) for ids in prompt]


def _replay(session: Session, rows: NDArray[np.float32], prompt: Ids) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Logits of the prompt's last position, and the greedy tokens as `_greedy` gives them."""
    decoder = session.decoder
    decoder.rewind(0)
    logits = decoder.extend(shown(prompt, rows))
    return logits.copy(), _greedy(decoder, logits)


def _greedy(decoder: Decoder, logits: NDArray[np.float32]) -> NDArray[np.int32]:
    """-1 from the first logits on that are not finite: they say no token."""
    tokens: list[int] = []
    for _ in range(TOKENS):
        if not np.isfinite(logits).all():
            return np.array(tokens + [-1] * (TOKENS - len(tokens)), dtype=np.int32)
        tokens.append(int(logits.argmax()))
        logits = decoder.extend([Tokens((tokens[-1],))])
    return np.array(tokens, dtype=np.int32)


def _bounds(session: Session, role: str, measures: tuple[str, ...]) -> dict[str, float]:
    part, choices = session.bundle.manifest.part(role), session.plan.choices
    tolerance = part.tolerance
    if any(choice.part is part and choice.provider != "cpu" for choice in choices):
        tolerance = card_tolerance(tolerance)
    return {measure: bound for measure, bound in tolerance.items() if measure in measures}


def card_tolerance(tolerance: Mapping[str, float]) -> dict[str, float]:
    """What a card may be off by where the processor may be off by `tolerance`: CARD times as much, and no more than
    CARD_COSINE. cuBLAS and cuDNN sum in other orders and transform convolutions, TensorRT computes in halves. Derived,
    not measured: a wrong kernel is off by far more."""
    found = dict(tolerance)
    if "max_abs" in found:
        found["max_abs"] *= CARD
    if "cosine" in found:
        found["cosine"] = min(found["cosine"], max(CARD_COSINE, 1 - CARD * (1 - found["cosine"])))
    return found


def _require_shape(found: NDArray[Any], reference: NDArray[Any]) -> None:
    if found.shape != reference.shape:
        raise BundleError(
            f"the golden sample holds {list(reference.shape)} where the bundle gives {list(found.shape)}",
            hint="export the bundle again",
        )


def _agreement(found: NDArray[np.int32], reference: NDArray[np.int32]) -> float:
    """The share that is equal; NaN where one of them is no token."""
    _require_shape(found, reference)
    return math.nan if (found < 0).any() or (reference < 0).any() else float((found == reference).mean())


def _picture_error(golden: Golden, spec: ImageSpec) -> dict[str, float]:
    return distance(image.pixels(golden.picture, spec), golden.pixel_values)


def _prompt_agreement(session: Session, golden: Golden) -> float:
    """1.0 when the question is cut and tokenised into the very ids that the export saw."""
    manifest = session.bundle.manifest
    question, same = manifest.golden_prompt["question"], True
    for before, of, prompt in asked(manifest.golden_prompt, golden):
        grid = session.views(golden.picture).grid if before else None
        rows = np.zeros((manifest.spec.prompt.image_tokens, 1), np.float32)
        if before:
            rows = np.zeros((of.fp32.image_embeds.shape[1], 1), np.float32)
        turn = Turn.about(question, (Embeddings(rows, key="golden", grid=grid),))
        cut = segments(manifest.spec.prompt, session.tokenizer, [turn])
        same &= [list(segment.ids) if isinstance(segment, Tokens) else None for segment in cut] == prompt
    return float(same)
