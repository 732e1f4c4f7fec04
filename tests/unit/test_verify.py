"""What counts as the same model: rows, reports, and the replay of golden through an engine that computes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import BYTES, write_model_bundle

from edge import verify as verifying
from edge.bundle import manifest as bundles
from edge.bundle.golden import TOKENS, Golden, Outputs
from edge.bundle.manifest import Bundle, Manifest
from edge.errors import BundleError, EdgeError
from edge.inference.session import load
from edge.inputs import image
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.types import Embeddings, Tokens
from edge.verify import Report, Row, compare, distance, verify

NAN = math.nan
TOLERANCE = {"max_abs": 1e-3, "cosine": 0.999, "tokens": 1.0}


# rows and reports


@pytest.mark.parametrize(
    ("error", "tolerance", "ok"),
    [
        (
            {"max_abs": 0.1, "cosine": 0.99},
            {"max_abs": 0.1, "cosine": 0.99},
            True,
        ),  # a bound belongs to what is allowed
        ({"max_abs": 0.1001, "cosine": 1.0}, {"max_abs": 0.1, "cosine": 0.99}, False),
        ({"max_abs": 0.0, "cosine": 0.9899}, {"max_abs": 0.1, "cosine": 0.99}, False),
        ({"max_abs": 0.0, "cosine": -1.0}, {"cosine": 0.99}, False),
        ({"tokens": 1.0}, {"tokens": 1.0}, True),
        ({"tokens": 15 / 16}, {"tokens": 1.0}, False),
        ({"max_abs": NAN, "cosine": 1.0}, {"max_abs": 0.1}, False),
        ({"max_abs": 0.0, "cosine": NAN}, {"cosine": 0.5}, False),
        ({"max_abs": math.inf}, {"max_abs": 1e30}, False),
        ({"max_abs": 0.0}, {"max_abs": NAN}, False),
        ({"max_abs": 9.0, "cosine": -1.0}, {}, True),  # a row without bounds tells
        ({"max_abs": 9.0, "cosine": NAN}, {}, False),  # but what is not finite is no cost
        ({"max_abs": math.inf, "cosine": 0.0}, {}, False),
        ({"tokens": NAN}, {}, False),
        ({"max_abs": 0.0, "cosine": NAN}, {"max_abs": 0.1}, False),  # bounded or not
        ({"max_abs": 0.0, "cosine": -1.0}, {"max_abs": 0.1}, True),  # what is not bounded is not judged
    ],
)
def test_a_row_fails_beyond_its_bounds(error: dict[str, float], tolerance: dict[str, float], ok: bool) -> None:
    assert Row("vision", "stored", error, tolerance).ok is ok


def test_a_report_is_as_good_as_its_worst_row() -> None:
    good = Row("vision", "stored", {"cosine": 1.0}, {"cosine": 0.9})
    bad = Row("prefill", "stored", {"cosine": 0.8}, {"cosine": 0.9})
    assert Report((good, good)).ok is True
    assert Report((good, bad)).ok is False
    report = Report((good, bad))
    assert report.error("prefill", "stored") == {"cosine": 0.8}
    with pytest.raises(StopIteration):
        report.error("prefill", "fp32")
    written = {"stage": "prefill", "against": "stored", "error": {"cosine": 0.8}, "tolerance": {"cosine": 0.9}}
    data = json.loads(json.dumps(report.to_json()))
    assert data["ok"] is False
    assert data["rows"][1] == {**written, "ok": False}


def test_distance() -> None:
    a = np.array([[3.0, 4.0]], np.float32)
    assert distance(a, a) == {"max_abs": 0.0, "cosine": 1.0}
    assert distance(a, np.array([[4.0, -3.0]], np.float32)) == {"max_abs": 7.0, "cosine": 0.0}
    assert distance(-a, a) == {"max_abs": 8.0, "cosine": -1.0}
    assert distance(2 * a, a) == {"max_abs": 4.0, "cosine": 1.0}
    zeros = np.zeros_like(a)  # of no direction
    assert distance(zeros, a) == distance(a, zeros) == {"max_abs": 4.0, "cosine": 0.0}
    assert distance(zeros, zeros) == {"max_abs": 0.0, "cosine": 1.0}


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_a_distance_to_what_is_not_finite_is_none(value: float) -> None:
    a, broken = np.array([[3.0, 4.0]], np.float32), np.array([[value, 4.0]], np.float32)
    for pair in ((a, broken), (broken, a), (broken, broken)):
        assert all(map(math.isnan, distance(*pair).values()))


def test_distance_is_of_arrays_of_one_shape() -> None:
    with pytest.raises(BundleError, match=r"holds \[3\] where the bundle gives \[1, 3\]"):
        distance(np.ones((1, 3), np.float32), np.ones(3, np.float32))  # NumPy would broadcast them


# the replay


def rewritten(bundle: Bundle, change: Callable[[Manifest], Manifest]) -> Bundle:
    bundles.write_manifest(bundle.path, change(bundle.manifest))
    return Bundle.open(bundle.path)


def with_golden(bundle: Bundle, golden: Golden) -> Bundle:
    golden.save(bundle.path / "golden.safetensors")
    entry = bundles.describe(bundle.path, bundle.path / "golden.safetensors")
    return rewritten(bundle, lambda manifest: replace(manifest, golden=entry))


def prompt_of(bundle: Bundle, question: str) -> dict[str, Any]:
    spec = bundle.manifest.spec
    rows = Embeddings(np.zeros((spec.prompt.image_tokens, spec.decoder.hidden), np.float32), "golden")
    cut = segments(spec.prompt, Tokenizer.open(bundle.path / "tokenizer.json"), [Turn.about(question, (rows,))])
    return {"question": question, "segments": [list(s.ids) if isinstance(s, Tokens) else None for s in cut]}


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """Its golden is what the null engine gives, so that the replay finds no difference."""
    monkeypatch.setattr(verifying, "load", lambda *given, **options: load(*given, **{**options, "engine": "null"}))
    made = write_model_bundle(tmp_path / "bundle")
    vision, decoder = made.manifest.parts
    parts = (replace(vision, tolerance={"max_abs": 1e-3, "cosine": 0.999}), replace(decoder, tolerance=TOLERANCE))
    asked = prompt_of(made, "What is this?")
    made = rewritten(made, lambda manifest: replace(manifest, parts=parts, golden_prompt=asked))
    return with_golden(made, golden_of(made))


def golden_of(bundle: Bundle) -> Golden:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    pixel_values = image.pixels(picture, bundle.manifest.spec.image)
    with load(bundle.path, engine="null") as session:
        rows = session.encode_pixels(pixel_values)
        decoder = session.decoder
        prompt = bundle.manifest.golden_prompt["segments"]
        logits = first = decoder.extend([rows if ids is None else Tokens(tuple(ids)) for ids in prompt])
        tokens = []
        for _ in range(TOKENS):
            tokens.append(int(logits.argmax()))
            logits = decoder.extend([Tokens((tokens[-1],))])
    outputs = Outputs(rows.rows[None], first, np.array(tokens, np.int32))
    return Golden(picture, pixel_values, outputs, outputs)


def test_the_replay_of_a_true_bundle(bundle: Bundle) -> None:
    report = verify(bundle)
    assert report.ok
    distances = {"max_abs": 1e-3, "cosine": 0.999}
    assert [(row.stage, row.against, row.tolerance) for row in report.rows] == [
        ("picture", "golden", {"max_abs": 1e-4}),
        ("prompt", "golden", {"tokens": 1.0}),
        ("vision", "stored", distances),
        ("vision", "fp32", {}),
        ("prefill", "stored", distances),
        ("prefill", "fp32", {}),
        ("tokens", "stored", {"tokens": 1.0}),
        ("tokens", "fp32", {}),
    ]
    for row in report.rows:
        assert row.error.get("max_abs", 0.0) == 0.0, row
        assert row.error.get("cosine", 1.0) == pytest.approx(1.0), row
        assert row.error.get("tokens", 1.0) == 1.0, row


def test_a_bundle_that_sees_nothing_proves_its_decoder(bundle: Bundle) -> None:
    whole = verify(bundle)
    blind = rewritten(bundle, lambda manifest: replace(manifest, parts=manifest.parts[1:]))
    assert verify(blind).rows == tuple(row for row in whole.rows if row.stage != "vision")


def test_the_null_engine_tells_one_question_from_another(bundle: Bundle) -> None:
    """What the tests below rest on: a longer prompt gives other logits."""
    asked = prompt_of(bundle, "What is that there?")
    report = verify(rewritten(bundle, lambda manifest: replace(manifest, golden_prompt=asked)))
    assert [row.stage for row in report.rows if not row.ok] == ["prefill", "tokens"]


OTHER_VALUES: dict[str, tuple[Callable[[Golden], Golden], list[tuple[str, str]]]] = {
    "rows": (
        lambda g: replace(g, stored=replace(g.stored, image_embeds=g.stored.image_embeds + 0.01)),
        [("vision", "stored")],
    ),
    "one number of the rows": (
        lambda g: replace(g, stored=replace(g.stored, image_embeds=bumped(g.stored.image_embeds))),
        [("vision", "stored")],
    ),
    "logits": (
        lambda g: replace(g, stored=replace(g.stored, logits=np.roll(g.stored.logits, 1))),
        [("prefill", "stored")],
    ),
    "the last token": (
        lambda g: replace(g, stored=replace(g.stored, tokens=bumped(g.stored.tokens))),
        [("tokens", "stored")],
    ),
    "pixels": (
        lambda g: replace(g, pixel_values=bumped(g.pixel_values)),
        [("picture", "golden"), ("vision", "stored")],
    ),
    "picture": (lambda g: replace(g, picture=255 - g.picture), [("picture", "golden")]),
    "what fp32 gave": (lambda g: replace(g, fp32=replace(g.fp32, logits=-g.fp32.logits)), []),
}


def test_an_engine_is_right_that_rounds_activations_or_does_not(bundle: Bundle) -> None:
    golden = Golden.load(bundle.path / "golden.safetensors")
    rows, logits = golden.stored.image_embeds, golden.stored.logits
    other = Outputs(bumped(rows * 0.5), bumped(-logits), (golden.stored.tokens + 1) % 7)
    for stored, rounded in ((golden.stored, other), (other, golden.stored)):
        report = verify(with_golden(bundle, replace(golden, stored=stored, rounded=rounded)))
        assert report.ok
        assert report.error("vision", "stored")["max_abs"] == 0
        assert report.error("tokens", "stored")["tokens"] == 1
    neither = verify(with_golden(bundle, replace(golden, stored=other, rounded=other)))
    assert {row.stage for row in neither.rows if not row.ok} == {"vision", "prefill", "tokens"}


@pytest.mark.parametrize("name", ["rounded.image_embeds", "rounded.logits"])
def test_what_rounds_must_be_finite_too(bundle: Bundle, name: str) -> None:
    golden = Golden.load(bundle.path / "golden.safetensors")
    golden = replace(golden, rounded=golden.stored)
    assert not verify(with_golden(bundle, spoilt(golden, name, NAN))).ok


def bumped(values: Any) -> Any:
    other = values.copy()
    other.flat[-1] += 1
    return other


@pytest.mark.parametrize(("change", "fails"), OTHER_VALUES.values(), ids=OTHER_VALUES.keys())
def test_another_golden_fails_where_it_differs(
    bundle: Bundle, change: Callable[[Golden], Golden], fails: list[tuple[str, str]]
) -> None:
    report = verify(with_golden(bundle, change(Golden.load(bundle.path / "golden.safetensors"))))
    assert [(row.stage, row.against) for row in report.rows if not row.ok] == fails


def spoilt(golden: Golden, name: str, value: float) -> Golden:
    """One number of `pixel_values`, or of `side.array`."""
    side, _, array = name.rpartition(".")
    owner = getattr(golden, side) if side else golden
    other = getattr(owner, array).copy()
    other.flat[-1] = value
    changed = replace(owner, **{array: other})
    return replace(golden, **{side: changed}) if side else changed


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("stored.image_embeds", ("vision", "stored")),
        ("stored.logits", ("prefill", "stored")),
        ("fp32.image_embeds", ("vision", "fp32")),  # where else the cost of quantising is told
        ("fp32.logits", ("prefill", "fp32")),
        ("pixel_values", ("picture", "golden")),
    ],
)
def test_a_golden_that_is_not_finite_fails(bundle: Bundle, name: str, row: tuple[str, str], value: float) -> None:
    report = verify(with_golden(bundle, spoilt(Golden.load(bundle.path / "golden.safetensors"), name, value)))
    assert not report.ok
    assert row in [(row.stage, row.against) for row in report.rows if not row.ok]
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))["rows"]
    assert {"max_abs": None, "cosine": None} in [w["error"] for w in written if (w["stage"], w["against"]) == row]


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("after", [0, 1, TOKENS - 1])
def test_logits_that_are_not_finite_fail(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, after: int, value: float
) -> None:
    """Of the prompt, or of any token: an argmax would take a NaN for the most likely one."""
    calls = count()

    def extend(self: Any, segments: Any) -> Any:
        logits = extended(self, segments).copy()
        if next(calls) >= after:
            logits[3] = value
        return logits

    with load(bundle.path, engine="null") as session:
        kind = type(session.decoder)
    extended = kind.extend
    monkeypatch.setattr(kind, "extend", extend)
    report = verify(bundle)
    found = [(row.stage, row.against) for row in report.rows if not row.ok]
    prefill, tokens = ([(stage, side) for side in ("stored", "fp32")] for stage in ("prefill", "tokens"))
    assert found == (prefill if after == 0 else []) + tokens
    assert math.isnan(report.error("tokens", "fp32")["tokens"])


def test_the_cost_against_fp32_is_told(bundle: Bundle) -> None:
    golden = Golden.load(bundle.path / "golden.safetensors")
    far = replace(golden.fp32, logits=-golden.fp32.logits, tokens=golden.fp32.tokens + 1)
    report = verify(with_golden(bundle, replace(golden, fp32=far)))
    assert report.ok
    assert report.error("prefill", "fp32")["cosine"] == pytest.approx(-1.0)
    assert report.error("tokens", "fp32") == {"tokens": 0.0}


def test_a_question_that_is_cut_otherwise_fails_the_prompt(bundle: Bundle) -> None:
    asked = {**bundle.manifest.golden_prompt, "question": "What is that?"}
    report = verify(rewritten(bundle, lambda manifest: replace(manifest, golden_prompt=asked)))
    assert [row.stage for row in report.rows if not row.ok] == ["prompt"]


def test_verify_hashes_every_file(bundle: Bundle) -> None:
    file = bundle.path / "vision.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match=r"vision\.onnx is not the file that was exported"):
        verify(bundle)


WRONG_SHAPES: dict[str, Callable[[Golden], Golden]] = {
    "rows": lambda g: replace(g, stored=replace(g.stored, image_embeds=g.stored.image_embeds[:, :-1])),
    "rows that are fed": lambda g: replace(g, fp32=replace(g.fp32, image_embeds=g.fp32.image_embeds[:, :, :-1])),
    "logits": lambda g: replace(g, stored=replace(g.stored, logits=g.stored.logits[:1])),
    "tokens": lambda g: replace(g, fp32=replace(g.fp32, tokens=g.fp32.tokens[:-1])),
    "pixels": lambda g: replace(g, pixel_values=g.pixel_values[:, :, :-1]),
    "picture": lambda g: replace(g, picture=g.picture[:0]),
}


@pytest.mark.parametrize("change", WRONG_SHAPES.values(), ids=WRONG_SHAPES.keys())
def test_a_golden_that_does_not_fit_is_an_error(bundle: Bundle, change: Callable[[Golden], Golden]) -> None:
    other = with_golden(bundle, change(Golden.load(bundle.path / "golden.safetensors")))
    with pytest.raises(EdgeError):
        verify(other)


@pytest.mark.parametrize("ids", [[[1], None, [10**6]], [[1], None, [-1]], [[BYTES] * 500, None]])
def test_a_golden_prompt_that_cannot_be_fed_is_an_error(bundle: Bundle, ids: list[Any]) -> None:
    asked = {"question": "?", "segments": ids}
    with pytest.raises(EdgeError):
        verify(rewritten(bundle, lambda manifest: replace(manifest, golden_prompt=asked)))


# what a manifest may ask for


@pytest.mark.parametrize(("part", "measure"), [(0, "mean_abs"), (1, "mean_abs"), (1, "Cosine"), (1, ""), (0, "tokens")])
def test_a_bound_that_nobody_measures_is_refused(bundle: Bundle, part: int, measure: str) -> None:
    parts = list(bundle.manifest.parts)
    parts[part] = replace(parts[part], tolerance={"cosine": 0.9, measure: 0.5})
    with pytest.raises(BundleError, match=f"'{measure}'") as caught:
        rewritten(bundle, lambda manifest: replace(manifest, parts=tuple(parts)))
    assert "max_abs, cosine" in (caught.value.hint or "")


def test_one_part_for_all_roles_is_bounded_stage_by_stage(bundle: Bundle) -> None:
    """Its `tokens` are the decoder's alone."""
    vision, decoder = bundle.manifest.parts
    both = replace(vision, covers=("vision", "projector", "decoder"), tolerance=TOLERANCE)
    with load(bundle.path, engine="null") as session:
        session.bundle = replace(bundle, manifest=replace(bundle.manifest, parts=(both, decoder)))
        report = compare(session, Golden.load(bundle.path / "golden.safetensors"))
    assert report.ok
    assert {row.stage: set(row.tolerance) for row in report.rows if row.against == "stored"} == {
        "vision": {"max_abs", "cosine"},
        "prefill": {"max_abs", "cosine"},
        "tokens": {"tokens"},
    }
