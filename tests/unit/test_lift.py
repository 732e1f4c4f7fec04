from __future__ import annotations

import mmap
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fakes import DECODER, FIXED, GROWING, NumpyGraph, decoder_part, picture, words
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.decoders import kv_cache
from edge.decoders.embedding_table import EmbeddingTable
from edge.decoders.kv_cache import CacheSlot
from edge.decoders.kv_graph import kv_decoder
from edge.errors import BundleError, ContextError, EngineError
from edge.types import Array, Decoder, Segment, Tokens

KINDS = [FIXED, GROWING, (64, 64)]
PROMPT: list[Segment] = [words("see "), picture(1), words(" what is it?")]
LENGTH = 4 + 4 + 12


@pytest.fixture(params=KINDS, ids=["fixed", "growing", "static"])
def graph(request: pytest.FixtureRequest) -> NumpyGraph:
    return NumpyGraph(DECODER, request.param)


@pytest.fixture
def decoder(graph: NumpyGraph, tmp_path: Path) -> Decoder:
    return kv_decoder(graph, decoder_part(tmp_path, DECODER), DECODER, 64)


def fresh(graph: NumpyGraph, folder: Path, context: int = 64) -> Decoder:
    return kv_decoder(graph, decoder_part(folder, DECODER), DECODER, context)


def greedy(decoder: Decoder, logits: Array, count: int) -> list[int]:
    found = []
    for _ in range(count):
        found.append(int(logits.argmax()))
        logits = decoder.extend([Tokens((found[-1],))])
    return found


def test_a_lifted_graph_is_a_decoder(decoder: Decoder) -> None:
    assert isinstance(decoder, Decoder)
    logits = decoder.extend(PROMPT)
    assert (logits.shape, logits.dtype) == ((DECODER.vocab,), np.float32)
    assert decoder.position == LENGTH


def test_logits_are_not_copied(decoder: Decoder, graph: NumpyGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come in the very memory that the graph wrote; each step has its own, so that they may be kept."""
    run, written = graph.run, []

    def spied(feeds: Mapping[str, Array], into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        found = run(feeds, into)
        written.append(found["logits"])
        return found

    monkeypatch.setattr(graph, "run", spied)
    first, second = decoder.extend(PROMPT), decoder.extend([Tokens((5,))])
    assert np.shares_memory(first, written[0]) and np.shares_memory(second, written[1])
    assert not np.shares_memory(first, second)


def test_cached_is_uncached(decoder: Decoder, graph: NumpyGraph, tmp_path: Path) -> None:
    found = greedy(decoder, decoder.extend(PROMPT), 12)
    assert len(set(found)) > 3, "the model must say something"
    ids: list[int] = []
    for token in found:
        anew = fresh(graph, tmp_path).extend([*PROMPT, Tokens(tuple(ids))])
        assert int(anew.argmax()) == token
        ids.append(token)


def test_one_extend_is_one_run(decoder: Decoder, graph: NumpyGraph) -> None:
    greedy(decoder, decoder.extend(PROMPT), 2)
    assert graph.lengths == [LENGTH, 1, 1]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, LENGTH - 1), max_size=5))
def test_whole_is_split_prefill(graph: NumpyGraph, tmp_path: Path, cuts: list[int]) -> None:
    rows = [Tokens((i,)) for i in words("see ").ids] + [PROMPT[1]] + [Tokens((i,)) for i in words(" what is it?").ids]
    whole = fresh(graph, tmp_path).extend(PROMPT)
    decoder = fresh(graph, tmp_path)
    edges = [0, *sorted({min(c, len(rows)) for c in cuts}), len(rows)]
    for start, end in pairwise(edges):
        if end > start:
            logits = decoder.extend(rows[start:end])
    np.testing.assert_allclose(logits, whole, atol=1e-5)


def test_rewind_forgets_exactly_what_follows(decoder: Decoder) -> None:
    first = decoder.extend(PROMPT)
    decoder.extend([words("another ending")])
    decoder.rewind(LENGTH - 1)
    assert decoder.position == LENGTH - 1
    np.testing.assert_array_equal(decoder.extend([words("?")]), first)
    decoder.rewind(LENGTH)  # nothing to forget
    assert decoder.position == LENGTH
    decoder.rewind(0)
    np.testing.assert_array_equal(decoder.extend(PROMPT), first)


@pytest.mark.parametrize("position", [-1, LENGTH + 1])
def test_rewind_to_nowhere(decoder: Decoder, position: int) -> None:
    decoder.extend(PROMPT)
    with pytest.raises(EngineError, match=f"rewind to {position} from {LENGTH}"):
        decoder.rewind(position)


# snapshots


@pytest.mark.parametrize("length", KINDS)
def test_a_snapshot_goes_on_in_another_decoder(
    graph: NumpyGraph, tmp_path: Path, length: tuple[int | str, ...]
) -> None:
    decoder = fresh(graph, tmp_path)
    greedy(decoder, decoder.extend(PROMPT), 5)
    kept = decoder.snapshot()
    assert (kept.position, kept.nbytes) == (LENGTH + 5, 2 * 2 * 2 * 8 * 4 * (LENGTH + 5))
    expected = greedy(decoder, decoder.extend([words("?")]), 6)
    other = fresh(NumpyGraph(DECODER, length), tmp_path)  # of whichever kind: they keep the same
    other.extend([words("something else")])
    other.restore(kept)
    assert other.position == LENGTH + 5
    assert greedy(other, other.extend([words("?")]), 6) == expected
    other.restore(kept)  # it was a copy
    other.rewind(LENGTH)
    decoder.rewind(LENGTH)
    np.testing.assert_array_equal(other.extend([words("!")]), decoder.extend([words("!")]))


def test_a_snapshot_of_nothing(decoder: Decoder) -> None:
    kept = decoder.snapshot()
    assert (kept.position, kept.nbytes) == (0, 0)
    first = decoder.extend(PROMPT)
    decoder.restore(kept)
    assert decoder.position == 0
    np.testing.assert_array_equal(decoder.extend(PROMPT), first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "another"}, "the layout 'another', for a decoder of 'past_key_values'"),
        ({"position": 65}, "65 positions, for a context of 64"),
        ({"position": -1}, "-1 positions"),
        ({"position": LENGTH + 1}, "past_key_values.0.key is float32"),
        ({"arrays": {}}, "fed nothing"),
    ],
)
def test_a_snapshot_that_does_not_fit(decoder: Decoder, changes: dict[str, object], message: str) -> None:
    first = decoder.extend(PROMPT)
    kept = decoder.snapshot()
    with pytest.raises(EngineError, match=message):
        decoder.restore(replace(kept, **changes))  # type: ignore[arg-type]
    assert decoder.position == 0
    np.testing.assert_array_equal(decoder.extend(PROMPT), first)


def test_a_snapshot_of_other_numbers(decoder: Decoder) -> None:
    decoder.extend(PROMPT)
    kept = decoder.snapshot()
    arrays = {name: array.astype(np.float16) for name, array in kept.arrays.items()}
    with pytest.raises(EngineError, match="and the array is float16"):
        decoder.restore(replace(kept, arrays=arrays))


def test_no_memory_for_a_snapshot(decoder: Decoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    decoder.extend(PROMPT)
    kept = decoder.snapshot()

    def full(slot: CacheSlot, length: int) -> Array:
        raise MemoryError

    other = fresh(NumpyGraph(DECODER), tmp_path)
    monkeypatch.setattr(CacheSlot, "zeros", full)
    with pytest.raises(EngineError, match=f"no memory for a KV cache of {LENGTH} positions"):
        other.restore(kept)
    assert other.position == 0


def test_a_growing_cache_doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = NumpyGraph(DECODER, GROWING)
    wide = greedy(d := fresh(graph, tmp_path), d.extend(PROMPT), 40)
    made: list[int] = []
    zeros = CacheSlot.zeros
    monkeypatch.setattr(kv_cache, "STEP", 4)
    monkeypatch.setattr(CacheSlot, "zeros", lambda slot, n: (made.append(n), zeros(slot, n))[1])
    narrow = greedy(d := fresh(graph, tmp_path), d.extend(PROMPT), 40)
    assert narrow == wide
    assert sorted(set(made) - {0}) == [32, 64], "up to the context"


def test_a_fixed_cache_never_moves(tmp_path: Path) -> None:
    graph = NumpyGraph(DECODER)
    seen: list[int] = []
    run = graph.run

    def record(feeds: Mapping[str, Array], into: Mapping[str, Array] | None = None) -> dict[str, Array]:
        seen.append(feeds["past_key_values.0.key"].ctypes.data)
        return run(feeds, into)

    graph.run = record  # type: ignore[method-assign]
    decoder = kv_decoder(graph, decoder_part(tmp_path, DECODER), DECODER, 2048)
    for text in ("a", "x" * 240, "y" * 600):
        decoder.extend([words(text)])
    assert len(set(seen)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_follows_use() -> None:
    slot = CacheSlot("past", "present", "float32", heads=4, head_dim=64)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    array = slot.zeros(100_000)  # 102 MB
    array[:, :, :1000] = 1
    assert resident() - before < 20_000_000
    assert array.sum() == 4 * 64 * 1000


def test_a_prompt_that_does_not_fit_leaves_the_state(decoder: Decoder, graph: NumpyGraph) -> None:
    decoder.extend(PROMPT)
    with pytest.raises(ContextError, match=r"needs 70 positions, and the context holds 64") as caught:
        decoder.extend([words("x" * 50)])
    assert "--context" in str(caught.value.hint)
    assert (decoder.position, graph.lengths) == (LENGTH, [LENGTH]), "nothing was computed"
    decoder.extend([words("x" * 44)])  # to the last position
    assert decoder.position == 64


def test_a_graph_that_names_a_length_bounds_the_context(tmp_path: Path) -> None:
    decoder = kv_decoder(NumpyGraph(DECODER, (16, 16)), decoder_part(tmp_path, DECODER), DECODER, 64)
    with pytest.raises(ContextError, match="holds 16"):
        decoder.extend(PROMPT)
    assert decoder.extend([words("x" * 16)]).shape == (DECODER.vocab,)


def test_a_system_without_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> mmap.mmap:
        raise OSError(12, "Cannot allocate memory")

    decoder = fresh(NumpyGraph(DECODER), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(mmap, "mmap", refuse)
        with pytest.raises(EngineError, match="no memory for a KV cache of 9 positions"):
            decoder.extend([words("see fives")])
    assert decoder.extend([words("see fives")]).shape == (DECODER.vocab,)


def test_a_failed_run_leaves_the_state(decoder: Decoder, graph: NumpyGraph, tmp_path: Path) -> None:
    decoder.extend(PROMPT)
    graph.fail = True
    with pytest.raises(EngineError, match="the graph failed"):
        decoder.extend([words("garbage")])
    graph.fail = False
    assert decoder.position == LENGTH
    expected = fresh(graph, tmp_path).extend([*PROMPT, words("!")])
    np.testing.assert_allclose(decoder.extend([words("!")]), expected, atol=1e-5)


def test_no_memory_to_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "STEP", 4)
    graph = NumpyGraph(DECODER, GROWING)
    decoder = fresh(graph, tmp_path)
    decoder.extend([words("see ")])
    zeros, left = CacheSlot.zeros, [2]

    def scarce(slot: CacheSlot, count: int) -> Array:
        left[0] -= count > 0
        if count and left[0] < 0:
            raise MemoryError
        return zeros(slot, count)

    monkeypatch.setattr(CacheSlot, "zeros", scarce)
    with pytest.raises(EngineError, match="no memory for a KV cache of 9 positions"):
        decoder.extend([words("fives")])
    assert decoder.position == 4
    monkeypatch.setattr(CacheSlot, "zeros", zeros)
    expected = fresh(graph, tmp_path).extend([words("see fives")])
    np.testing.assert_allclose(decoder.extend([words("fives")]), expected, atol=1e-5)


def test_logits_of_every_position_and_no_position_ids(tmp_path: Path) -> None:
    last = fresh(NumpyGraph(DECODER), tmp_path).extend(PROMPT)
    every = fresh(NumpyGraph(DECODER, positions=False, every_logit=True), tmp_path).extend(PROMPT)
    np.testing.assert_array_equal(every, last)


def test_the_logits_are_the_callers(decoder: Decoder) -> None:
    first = decoder.extend(PROMPT)
    kept = first.copy()
    decoder.extend([words("x")])
    np.testing.assert_array_equal(first, kept)


def test_what_cannot_be_extended(decoder: Decoder) -> None:
    with pytest.raises(EngineError, match="by nothing"):
        decoder.extend([Tokens(())])
    with pytest.raises(EngineError, match="vocabulary of 259: 5 to 259"):
        decoder.extend([Tokens((5, 259))])
    with pytest.raises(EngineError, match="vocabulary of 259: -1 to 5"):
        decoder.extend([Tokens((5, -1))])
    with pytest.raises(EngineError, match=r"embeddings of \(4, 31\), for a decoder of width 32"):
        decoder.extend([picture(1, hidden=31)])
    assert decoder.position == 0
    logits = decoder.extend([Tokens(()), words("x")])  # an empty segment among others is fine
    assert logits.shape == (DECODER.vocab,)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(DECODER, layers=3), r"not a decoder of 3 layers: past_key_values.2.key"),
        (replace(DECODER, layers=1), r"not a decoder of 1 layers: past_key_values.1.key"),
        (
            replace(DECODER, kv_heads=4),
            r"past_key_values.0.key is \[1, 2, 'cache_length', 8\], expected \[1, 4, length, 8\]",
        ),
    ],
)
def test_a_graph_of_another_shape(spec: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=message):
        kv_decoder(NumpyGraph(DECODER), decoder_part(tmp_path, DECODER), spec, 64)  # type: ignore[arg-type]


def test_caches_of_two_kinds(tmp_path: Path) -> None:
    graph = NumpyGraph(DECODER)
    graph.outputs = (*graph.outputs[:-1], replace(graph.outputs[-1], shape=(1, 2, "other", 8)))
    with pytest.raises(EngineError, match="differ in length"):
        kv_decoder(graph, decoder_part(tmp_path, DECODER), DECODER, 64)


# the embedding table

VALUES = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)
IDS = (3, 0, 9, 3)


def gathered(folder: Path) -> Array:
    table = EmbeddingTable.open(sorted(folder.iterdir()), 10, 8)
    out = np.full((len(IDS), 8), np.nan, np.float32)
    table.gather(IDS, out)
    return out


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_table_of_floats(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "embed_tokens.npy", VALUES.astype(dtype))
    np.testing.assert_array_equal(gathered(tmp_path), VALUES.astype(dtype)[list(IDS)].astype(np.float32))


@pytest.mark.parametrize("blocks", [1, 4])
def test_a_table_of_int8_with_scales(tmp_path: Path, blocks: int) -> None:
    numbers = np.random.default_rng(1).integers(-127, 128, (10, 8)).astype(np.int8)
    scales = np.random.default_rng(2).uniform(0.01, 0.1, (10, blocks)).astype(np.float32)
    np.save(tmp_path / "embed_tokens.npy", numbers)
    np.save(tmp_path / "embed_scales.npy", scales)
    expected = (numbers * np.repeat(scales, 8 // blocks, axis=1))[list(IDS)]
    np.testing.assert_array_equal(gathered(tmp_path), expected)


def test_a_table_is_mapped_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "embed_tokens.npy", VALUES)
    table = EmbeddingTable.open([tmp_path / "embed_tokens.npy"], 10, 8)
    assert isinstance(table._table.base, np.memmap)


@pytest.mark.parametrize(
    ("table", "scales", "message"),
    [
        (None, None, "has no embed_tokens.npy"),
        (VALUES[:, :7], None, r"embed_tokens.npy is damaged: it is float32 \(10, 7\), expected \[10, 8\]"),
        (VALUES.astype(np.float64), None, "it is float64"),
        (VALUES.astype(np.int8), None, "has no embed_scales.npy"),
        (VALUES.astype(np.int8), np.ones((9, 1), np.float32), r"embed_scales.npy is damaged: it is float32 \(9, 1\)"),
        (VALUES.astype(np.int8), np.ones((10, 3), np.float32), r"\(10, 3\)"),
        (VALUES.astype(np.int8), np.ones((10, 0), np.float32), "embed_scales.npy is damaged"),
        (VALUES.astype(np.int8), np.ones((10, 2), np.float64), "it is float64"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, table: Array | None, scales: Array | None, message: str) -> None:
    if table is not None:
        np.save(tmp_path / "embed_tokens.npy", table)
    if scales is not None:
        np.save(tmp_path / "embed_scales.npy", scales)
    with pytest.raises(BundleError, match=message):
        gathered(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00"])
def test_a_damaged_table(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "embed_tokens.npy").write_bytes(content)
    with pytest.raises(BundleError, match=r"embed_tokens.npy is damaged") as caught:
        gathered(tmp_path)
    assert f"edge verify {tmp_path}" in str(caught.value.hint)
