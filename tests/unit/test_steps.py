"""The decoder of steps over a program in numpy, whose answer hangs on the rows, their places and their order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.decoders.signatures import PAST, Call, Calls, SignatureDecoder, SignatureGraph, opened
from edge.errors import BundleError, ContextError, EngineError
from edge.formats import tflite
from edge.formats.tflite import Signature, TFLite
from edge.spec import DecoderSpec
from edge.types import Array, Embeddings, OpenOptions, PartFiles, TensorSpec, Tokens

SPEC = DecoderSpec(2, 2, 1, 4, 8, 8, 32, 10000.0)
LONGEST = 7
NAMES = ("prefill", "decode_8", "decode_16", "decode_32")


def signature(name: str, spec: DecoderSpec = SPEC) -> Signature:
    s, t = LONGEST, int(name.partition("_")[2] or 0)
    kv, d = spec.kv_heads, spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "inputs_embeds": (1, s, spec.hidden),
        "cos": (1, s, 1, d),
        "sin": (1, s, 1, d),
        "mask": (1, 1, spec.heads // kv * s, t + s),
    }
    given: dict[str, tuple[int, ...]] = {"logits": (1, 1, spec.vocab)}
    free: dict[str, tuple[int, ...]] = {"inputs_embeds": (1,), "cos": (1,), "sin": (1,), "mask": (2, 3)}
    for layer in range(spec.layers):
        given |= {f"present.{layer}.key": (1, kv, s, d), f"present.{layer}.value": (1, kv, d, s)}
        free |= {f"present.{layer}.key": (2,), f"present.{layer}.value": (3,)}
        if t:
            shapes |= {f"{PAST}{layer}.key": (1, kv, t, d), f"{PAST}{layer}.value": (1, kv, d, t)}
    inputs, outputs = (
        tuple(TensorSpec(name, "float32", shape) for name, shape in specs.items()) for specs in (shapes, given)
    )
    return Signature(name, 0, inputs, outputs, (), (), free)


class Numpy:
    """Attention of two layers and two query heads over one head of keys; memory that was not written is NaN, and all of
    it is other memory after each call, the cache's too."""

    def __init__(self, signatures: Mapping[str, Signature]) -> None:
        self.signatures = signatures
        self.calls: list[tuple[str, int]] = []
        self.kept: dict[str, Array] = {}
        self.arrays: dict[str, Array] = {}

    def cache(self, call: Call) -> dict[str, Array]:
        self.kept = {t.name: np.zeros(t.shape, t.dtype) for t in call.inputs if t.name.startswith(PAST)}
        return self.kept  # what was given before stays as it is

    def bind(self, call: Call) -> dict[str, Array]:
        self.arrays = {t.name: np.full(t.shape, np.nan, t.dtype) for t in call.own}
        for name, array in list(self.kept.items()):
            self.kept[name] = array.copy()
            array[:] = np.nan
        return self.arrays

    def run(self, call: Call) -> None:
        arrays, cache = self.arrays, self.kept
        x, place = arrays["inputs_embeds"][0], arrays["cos"][0, :, 0] - arrays["sin"][0, :, 0]
        self.calls.append((call.name, len(x)))
        for layer in range(2):
            k, v = x[:, :4] + place, x[:, 4:]
            arrays[f"present.{layer}.key"][0, 0], arrays[f"present.{layer}.value"][0, 0] = k, v.T
            if call.name != "prefill":
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


def decoder(part: PartFiles, context: int = SPEC.context) -> tuple[SignatureDecoder, Numpy]:
    program = Numpy({name: signature(name) for name in NAMES})
    return SignatureDecoder(program, Calls.of(program.signatures, SPEC, part), part, SPEC, context), program


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


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 31), st.integers(1, 30), st.integers(1, 6))
def test_a_snapshot_goes_on_in_another_decoder(part: PartFiles, held: int, before: int, then: int) -> None:
    rope, ids = np.load(part.files[2]), np.random.default_rng(held).integers(0, 8, 64).tolist()
    first, second = decoder(part)[0], decoder(part)[0]
    first.extend([Tokens(tuple(ids[:held]))])
    kept = first.snapshot()
    assert kept.nbytes == 2 * 2 * 4 * 4 * held
    second.extend([Tokens(tuple(ids[32 : 32 + before]))])
    second.restore(kept)
    then = min(then, 32 - held)
    logits = second.extend([Tokens(tuple(ids[held : held + then]))])
    np.testing.assert_allclose(logits, whole(rows_of(part, ids[: held + then]), rope), rtol=1e-4, atol=1e-5)


def test_a_snapshot_that_does_not_fit(part: PartFiles) -> None:
    first, second = decoder(part)[0], decoder(part, context=10)[0]
    first.extend([Tokens((1, 2, 3) * 4)])
    kept = first.snapshot()
    with pytest.raises(EngineError, match="12 positions, for a context of 10"):
        second.restore(kept)
    name = f"{PAST}0.value"
    arrays = {**kept.arrays, name: kept.arrays[name].transpose(0, 1, 3, 2)}
    with pytest.raises(EngineError, match=r"is float32 \[1, 1, 4, 12\] in the graph"):
        first.restore(dataclasses.replace(kept, arrays=arrays))
    assert first.position == 0


def test_pictures_stand_between_tokens(part: PartFiles) -> None:
    decoding, _ = decoder(part)
    picture = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
    logits = decoding.extend([Tokens((1, 2)), Tokens(()), Embeddings(picture, "p"), Tokens((3,))])
    rows = np.concatenate([rows_of(part, [1, 2]), picture, rows_of(part, [3])])
    np.testing.assert_allclose(logits, whole(rows, np.load(part.files[2])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("counts", "calls"),
    [
        ([1], [("prefill", 1)]),
        ([6], [("prefill", 6)]),
        ([7], [("prefill", 7)]),
        ([8], [("prefill", 7), ("decode_8", 1)]),
        ([7, 1, 1], [("prefill", 7), ("decode_8", 1), ("decode_16", 1)]),
        ([20, 3], [("prefill", 7), ("decode_32", 7), ("decode_32", 6), ("decode_32", 3)]),
    ],
)
def test_a_prompt_is_computed_as_it_is_and_cut_where_it_is_longer_than_a_call(
    part: PartFiles, counts: list[int], calls: list[tuple[str, int]]
) -> None:
    decoding, program = decoder(part)
    for count in counts:
        decoding.extend([Tokens((1,) * count)])
    assert program.calls == calls


def test_a_cache_that_grew_is_not_read_by_the_next_question(part: PartFiles) -> None:
    decoding, program = decoder(part)
    decoding.extend([Tokens((1, 2, 3) * 6)])
    decoding.rewind(5)
    program.calls.clear()
    logits = decoding.extend([Tokens((4,))])
    assert program.calls == [("decode_8", 1)]
    np.testing.assert_allclose(logits, whole(rows_of(part, [1, 2, 3, 1, 2, 4]), np.load(part.files[2])), rtol=1e-4)


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

    def full(call: Call) -> dict[str, Array]:
        raise MemoryError

    program.cache = full  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="no memory for a KV cache of 16 positions"):
        decoding.extend([Tokens((1,) * 8)])
    logits = decoding.extend([Tokens((4,))])
    np.testing.assert_allclose(logits, whole(rows_of(part, [1, 2, 3, 4]), np.load(part.files[2])), rtol=1e-4)


@pytest.mark.parametrize("names", [["decode_32"], ["prefill"], ["prefill", "decode_"], ["prefill", "decode_x"], []])
def test_missing_signatures_are_told(part: PartFiles, names: list[str]) -> None:
    signatures = {name: signature("decode_8" if name.startswith("decode_") else name) for name in names}
    with pytest.raises(BundleError, match=r"has the signatures .*, and a decoder has prefill and decode_T"):
        Calls.of(signatures, SPEC, part)


def test_a_file_for_a_shorter_context_is_told(part: PartFiles) -> None:
    signatures = {name: signature(name) for name in ("prefill", "decode_8", "decode_16")}
    with pytest.raises(BundleError, match="built for a context of 16, and the manifest says 32") as caught:
        Calls.of(signatures, SPEC, part)
    assert "--context 32" in str(caught.value.hint)


def test_signatures_of_another_model_are_told(part: PartFiles) -> None:
    other = DecoderSpec(2, 2, 1, 4, 8, 9, 32, 10000.0)
    with pytest.raises(BundleError, match="prefill, decode_8 is another's"):
        Calls.of({name: signature(name, other) for name in ("prefill", "decode_8")}, SPEC, part)


@pytest.mark.parametrize("free", [{}, {"inputs_embeds": (1,)}, {**signature("prefill").varying, "logits": (2,)}])
def test_a_file_whose_sizes_cannot_be_changed_so_is_told(part: PartFiles, free: dict[str, tuple[int, ...]]) -> None:
    fixed = {name: signature(name) for name in NAMES}
    fixed["prefill"] = dataclasses.replace(fixed["prefill"], varying=free)
    with pytest.raises(BundleError, match="describes: prefill is another's"):
        Calls.of(fixed, SPEC, part)


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
        SignatureDecoder(program, Calls.of(program.signatures, SPEC, part), changed, SPEC, 32)


class Doubling:
    def __init__(self) -> None:
        self.arrays = {"x": np.zeros((1, 2), np.float32), "y": np.zeros((1, 2), np.float32)}

    def cache(self, call: Call) -> dict[str, Array]:
        return {}

    def bind(self, call: Call) -> dict[str, Array]:
        return self.arrays

    def run(self, call: Call) -> None:
        self.arrays["y"][:] = 2 * self.arrays["x"]


PORTS = tuple((TensorSpec(name, "float32", (1, 2)),) for name in ("x", "y"))


ONE = Signature("encode", 0, *PORTS, (), (), {})


def test_a_graph_copies_to_and_from_the_programs_memory() -> None:
    graph = SignatureGraph(Doubling(), ONE)
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
    turned = Signature("encode", 0, PORTS[1], PORTS[0], (), (), {})
    for signatures in ({}, {"a": ONE, "b": ONE}, {"encode": turned}):
        file = TFLite(part.files[0], signatures, True)
        monkeypatch.setattr(tflite, "read", lambda path, file=file: file)
        with pytest.raises(BundleError, match="not the part that the manifest describes"):
            opened(part, OpenOptions(1, 8), lambda file: Doubling())
