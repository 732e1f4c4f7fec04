"""The decoder of fixed shapes over a program in numpy, whose answer hangs on the rows, their places and their order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge import tflite
from edge.errors import BundleError, ContextError, EngineError
from edge.spec import DecoderSpec
from edge.steps import PAST, FixedGraph, Piece, Pieces, StepDecoder, opened
from edge.tflite import Signature, TFLite
from edge.types import Array, Embeddings, OpenOptions, PartFiles, TensorSpec, Tokens

SPEC = DecoderSpec(2, 2, 1, 4, 8, 8, 32, 10000.0)
NAMES = ("prefill_4", "prefill_8", "prefill_4_8", "decode_8", "prefill_4_16", "decode_16", "prefill_4_32", "decode_32")


def signature(name: str, spec: DecoderSpec = SPEC) -> Signature:
    numbers = [int(n) for n in name.split("_")[1:]]
    s, t = (1, numbers[0]) if name.startswith("decode") else (numbers[0], numbers[1] if numbers[1:] else 0)
    kv, d = spec.kv_heads, spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "inputs_embeds": (1, s, spec.hidden),
        "cos": (1, s, 1, d),
        "sin": (1, s, 1, d),
        "mask": (1, 1, spec.heads // kv * s, t + s),
    }
    given: dict[str, tuple[int, ...]] = {"logits": (1, 1, spec.vocab)}
    for layer in range(spec.layers):
        given |= {f"present.{layer}.key": (1, kv, s, d), f"present.{layer}.value": (1, kv, d, s)}
        if t:
            shapes |= {f"{PAST}{layer}.key": (1, kv, t, d), f"{PAST}{layer}.value": (1, kv, d, t)}
    inputs, outputs = (
        tuple(TensorSpec(name, "float32", shape) for name, shape in specs.items()) for specs in (shapes, given)
    )
    return Signature(name, 0, inputs, outputs, (), ())


class Numpy:
    """Attention of two layers and two query heads over one head of keys; memory that was not written is NaN."""

    def __init__(self, signatures: Mapping[str, Signature]) -> None:
        self.signatures = signatures
        self.calls: list[str] = []
        self.arrays: dict[str, dict[str, Array]] = {}

    def cache(self, length: int) -> dict[str, Array]:
        inputs = self.signatures[f"decode_{length}"].inputs
        return {t.name: np.zeros(t.shape, t.dtype) for t in inputs if t.name.startswith(PAST)}

    def bind(self, name: str) -> dict[str, Array]:
        if name not in self.arrays:
            own = (*self.signatures[name].inputs, *self.signatures[name].outputs)
            self.arrays[name] = {t.name: np.full(t.shape, np.nan, t.dtype) for t in own if not t.name.startswith(PAST)}
        return self.arrays[name]

    def run(self, name: str, cache: Mapping[str, Array]) -> None:
        self.calls.append(name)
        arrays = self.arrays[name]
        x, place = arrays["inputs_embeds"][0], arrays["cos"][0, :, 0] - arrays["sin"][0, :, 0]
        after = not name.startswith("prefill") or name.count("_") == 2
        for layer in range(2):
            k, v = x[:, :4] + place, x[:, 4:]
            arrays[f"present.{layer}.key"][0, 0], arrays[f"present.{layer}.value"][0, 0] = k, v.T
            if after:
                k = np.concatenate([cache[f"{PAST}{layer}.key"][0, 0], k])
                v = np.concatenate([cache[f"{PAST}{layer}.value"][0, 0].T, v])
            queries = np.concatenate([x[:, :4], x[:, 4:]])  # [G * S, D]
            y = softmax(queries @ k.T + arrays["mask"][0, 0]) @ v
            x = x + np.concatenate(np.split(y, 2), axis=1)
        arrays["logits"][0, 0] = x[-1]


def softmax(scores: Array) -> Array:
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def whole(rows: Array, rope: Array) -> Array:
    """The same, all positions at once."""
    x = rows
    for _ in range(2):
        k, v = x[:, :4] + (rope[0] - rope[1])[: len(x)], x[:, 4:]
        hidden = np.triu(np.full((len(x), len(x)), -1e9), 1)
        y = [softmax(q @ k.T + hidden) @ v for q in (x[:, :4], x[:, 4:])]
        x = x + np.concatenate(y, axis=1)
    return x[-1]


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> PartFiles:
    folder = tmp_path_factory.mktemp("steps")
    random = np.random.default_rng(3)
    files = [folder / name for name in ("decoder.tflite", "embed_tokens.npy", "rope.npy")]
    np.save(files[1], random.normal(size=(8, 8)).astype(np.float32))
    np.save(files[2], random.normal(size=(2, 32, 4)).astype(np.float32))
    return PartFiles("tflite", "fp32", ("decoder",), tuple(files), (), (), SPEC)


def decoder(part: PartFiles, context: int = 0) -> tuple[StepDecoder, Numpy]:
    program = Numpy({name: signature(name) for name in NAMES})
    return StepDecoder(program, Pieces.of(program.signatures, SPEC, part), part, SPEC, context), program


def rows_of(part: PartFiles, ids: list[int]) -> Array:
    found: Array = np.load(part.files[1])[ids]
    return found


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 1 << 30))
def test_however_a_prompt_comes_the_answer_is_that_of_the_whole(part: PartFiles, counts: list[int], seed: int) -> None:
    decoding, _ = decoder(part)
    rope, ids = np.load(part.files[2]), np.random.default_rng(seed).integers(0, 8, 32).tolist()
    end = 0
    for count in counts:
        begin, end = end, min(end + count, 32)
        if begin == end:
            break
        logits = decoding.extend([Tokens(tuple(ids[begin:end]))])
        np.testing.assert_allclose(logits, whole(rows_of(part, ids[:end]), rope), rtol=1e-4, atol=1e-5)
        assert decoding.position == end


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 31), st.integers(0, 31), st.integers(1, 12))
def test_what_was_rewound_leaves_no_trace(part: PartFiles, first: int, kept: int, then: int) -> None:
    kept = min(kept, first)
    then = min(then, 32 - kept)
    decoding, _ = decoder(part)
    rope, ids = np.load(part.files[2]), np.random.default_rng(first).integers(0, 8, 64).tolist()
    decoding.extend([Tokens(tuple(ids[:first]))])
    decoding.rewind(kept)
    logits = decoding.extend([Tokens(tuple(ids[40 : 40 + then]))])
    np.testing.assert_allclose(
        logits, whole(rows_of(part, ids[:kept] + ids[40 : 40 + then]), rope), rtol=1e-4, atol=1e-5
    )


def test_pictures_stand_between_tokens(part: PartFiles) -> None:
    decoding, _ = decoder(part)
    picture = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    logits = decoding.extend([Tokens((1, 2)), Tokens(()), Embeddings(picture, "p"), Tokens((3,))])
    rows = np.concatenate([rows_of(part, [1, 2]), picture, rows_of(part, [3])])
    np.testing.assert_allclose(logits, whole(rows, np.load(part.files[2])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("counts", "calls"),
    [
        ([3], ["prefill_4"]),
        ([4], ["prefill_4"]),
        ([5], ["prefill_8"]),
        ([8], ["prefill_8"]),
        ([9], ["prefill_8", "decode_16"]),  # one more is a step, not a piece of four
        ([5, 1], ["prefill_8", "decode_8"]),
        ([8, 1], ["prefill_8", "decode_16"]),
        ([8, 3], ["prefill_8", "prefill_4_16"]),
        ([20], ["prefill_8", "prefill_4_32", "prefill_4_32", "prefill_4_32"]),
    ],
)
def test_a_prompt_is_cut_into_the_fewest_positions(part: PartFiles, counts: list[int], calls: list[str]) -> None:
    decoding, program = decoder(part)
    for count in counts:
        decoding.extend([Tokens((1,) * count)])
    assert program.calls == calls


def test_the_cheapest_pieces_pay_for_reading_the_weights_once_more() -> None:
    pieces = Pieces((*(Piece(f"prefill_{n}", n, 0) for n in (128, 192, 256)), Piece("prefill_64_512", 64, 512)))
    assert [p.length for p in pieces.cut(190, 0, 512)] == [192]
    assert [p.length for p in pieces.cut(193, 0, 512)] == [256]
    assert [p.length for p in pieces.cut(300, 0, 512)] == [256, 64]


def test_a_prompt_beyond_the_largest_cache_is_told(part: PartFiles) -> None:
    decoding, _ = decoder(part)
    with pytest.raises(ContextError, match="33 positions, and the context holds 32"):
        decoding.extend([Tokens((1,) * 33)])
    decoding, _ = decoder(part, context=10)
    decoding.extend([Tokens((1,) * 10)])
    with pytest.raises(ContextError, match="11 positions"):
        decoding.extend([Tokens((1,))])
    assert decoding.position == 10


def test_wrong_calls_are_told(part: PartFiles) -> None:
    decoding, _ = decoder(part)
    with pytest.raises(EngineError, match="by nothing"):
        decoding.extend([Tokens(())])
    with pytest.raises(EngineError, match="rewind to 1 from 0"):
        decoding.rewind(1)
    with pytest.raises(EngineError, match="width 8"):
        decoding.extend([Embeddings(np.zeros((2, 5), np.float32), "p")])


def test_no_memory_for_a_longer_cache_leaves_the_decoder_as_it_was(part: PartFiles) -> None:
    decoding, program = decoder(part)
    decoding.extend([Tokens((1, 2, 3))])

    def full(length: int) -> dict[str, Array]:
        raise MemoryError

    program.cache = full  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="no memory for the keys and values of 16 positions"):
        decoding.extend([Tokens((1,) * 8)])
    logits = decoding.extend([Tokens((4,))])
    np.testing.assert_allclose(logits, whole(rows_of(part, [1, 2, 3, 4]), np.load(part.files[2])), rtol=1e-4)


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["decode_32"], "missing: prefill_N"),
        (["prefill_4"], "missing: prefill_N"),
        (["prefill_4", "prefill_4_32"], "missing: decode_32"),
        (["encode"], "missing: prefill_N"),
    ],
)
def test_missing_signatures_are_told(part: PartFiles, names: list[str], complaint: str) -> None:
    signatures = {name: signature(name if name != "encode" else "prefill_4") for name in names}
    with pytest.raises(BundleError, match=complaint):
        Pieces.of(signatures, SPEC, part)


def test_signatures_of_another_model_are_told(part: PartFiles) -> None:
    other = DecoderSpec(2, 2, 1, 4, 8, 9, 32, 10000.0)
    with pytest.raises(BundleError, match="wrong: prefill_4, decode_8"):
        Pieces.of({name: signature(name, other) for name in ("prefill_4", "decode_8")}, SPEC, part)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "has no rope.npy"),
        (np.zeros((2, 31, 4), np.float32), "expected .2, 32, 4."),
        (np.zeros((2, 32, 4)), "float64"),
        (b"cut", "damaged"),
    ],
)
def test_a_wrong_table_of_rotations_is_told(
    part: PartFiles, tmp_path: Path, content: Array | bytes | None, complaint: str
) -> None:
    files = part.files[:2]
    if content is not None:
        files = (*files, tmp_path / "rope.npy")
        files[2].write_bytes(content) if isinstance(content, bytes) else np.save(files[2], content)
    program = Numpy({name: signature(name) for name in NAMES})
    changed = PartFiles("tflite", "fp32", ("decoder",), files, (), (), SPEC)
    with pytest.raises(BundleError, match=complaint):
        StepDecoder(program, Pieces.of(program.signatures, SPEC, part), changed, SPEC, 0)


class Doubling:
    def __init__(self) -> None:
        self.arrays = {"x": np.zeros((1, 2), np.float32), "y": np.zeros((1, 2), np.float32)}

    def cache(self, length: int) -> dict[str, Array]:
        return {}

    def bind(self, name: str) -> dict[str, Array]:
        return self.arrays

    def run(self, name: str, cache: Mapping[str, Array]) -> None:
        self.arrays["y"][:] = 2 * self.arrays["x"]


PORTS = tuple((TensorSpec(name, "float32", (1, 2)),) for name in ("x", "y"))


ONE = Signature("encode", 0, *PORTS, (), ())


def test_a_graph_copies_to_and_from_the_programs_memory() -> None:
    graph = FixedGraph(Doubling(), ONE)
    assert (graph.inputs, graph.outputs) == PORTS
    x = np.array([[1, 2]], np.float32)
    first = graph.run({"x": x})["y"]
    target = np.empty((1, 2), np.float32)
    assert graph.run({"x": x + 1}, {"y": target})["y"] is target
    assert (first.tolist(), target.tolist()) == ([[2, 4]], [[4, 6]])
    for feeds, into in (({}, {}), ({"x": x[0]}, {}), ({"x": x.astype(np.float64)}, {}), ({"x": x}, {"z": x})):
        with pytest.raises(EngineError):
            graph.run(feeds, into)


def test_a_graph_of_other_signatures_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    part = PartFiles("tflite", "fp32", ("vision",), (Path("v.tflite"),), *PORTS)
    turned = Signature("encode", 0, PORTS[1], PORTS[0], (), ())
    for signatures in ({}, {"a": ONE, "b": ONE}, {"encode": turned}):
        file = TFLite(part.files[0], signatures, True)
        monkeypatch.setattr(tflite, "read", lambda path, file=file: file)
        with pytest.raises(BundleError, match="not the part that the manifest describes"):
            opened(part, OpenOptions(), lambda file: Doubling())
