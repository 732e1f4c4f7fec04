"""The two operators of `native/executorch` against attention in float64: any pieces, at any positions."""

from __future__ import annotations

import math
from pathlib import Path

import edge_executorch
import numpy as np
import pytest
from attention_programs import FOLDER, PROGRAMS, Attention
from edge_executorch import Failure, Program
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge.formats import executorch
from edge.types import Array

COMPUTED = {name: of for name, of in PROGRAMS.items() if of.kept and not of.mask}


def opened(name: str, threads: int = 2) -> Program:
    return Program(FOLDER / f"{name}.pte", ["attention"], threads)


def drawn(of: Attention, count: int, seed: int, spread: float = 1.0) -> Array:
    """qkv f32 [1, S, H + 2 KV, D]."""
    shape = (1, count, of.heads + 2 * of.kv_heads, of.width)
    found: Array = (spread * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)
    return found


class Reference:
    def __init__(self, of: Attention) -> None:
        self.of = of
        self.keys, self.values = np.zeros((2, of.room, of.kv_heads, of.width))

    def run(self, qkv: Array, start: int) -> Array:
        of, count = self.of, qkv.shape[1]
        q, k, v = np.split(qkv[0].astype(np.float64), [of.heads, of.heads + of.kv_heads], axis=1)
        self.keys[start : start + count], self.values[start : start + count] = k, v
        keys, values = (
            np.repeat(t[: start + count], of.heads // of.kv_heads, axis=1) for t in (self.keys, self.values)
        )
        scores = np.einsum("shd,thd->hst", q, keys) * (of.scale or 1 / math.sqrt(of.width))
        if of.causal:
            scores[:, np.triu(np.ones((count, start + count), bool), start + 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        made: Array = np.einsum("hst,thd->shd", weights / weights.sum(axis=-1, keepdims=True), values)[None]
        return made


@st.composite
def pieces(draw: st.DrawFn) -> tuple[str, list[tuple[int, int]], int]:
    """A program, and (position, length) of pieces of which each begins where something is filled, or at its end."""
    name = draw(st.sampled_from(sorted(COMPUTED)))
    room, filled, found = COMPUTED[name].room, 0, []
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(max(0, filled - 3), min(filled, room - 1)))
        count = draw(st.integers(1, min(room - 1, room - start)))
        found.append((start, count))
        filled = start + count
    return name, found, draw(st.integers(0, 1 << 30))


@settings(deadline=None, max_examples=60)
@given(pieces())
@example(("wide", [(0, 139), (139, 1)], 1))
@example(("equal", [(0, 63), (63, 1), (64, 1), (65, 129)], 2))
@example(("grouped", [(0, 1), (1, 1), (2, 94)], 3))
def test_attention_is_that_of_float64(drawn_pieces: tuple[str, list[tuple[int, int]], int]) -> None:
    name, found, seed = drawn_pieces
    program, reference = opened(name), Reference(COMPUTED[name])
    for index, (start, count) in enumerate(found):
        qkv = drawn(COMPUTED[name], count, seed + index, spread=1.5)
        (made,) = program.run("attention", qkv, np.array([start]))
        expected = reference.run(qkv, start)
        assert made.shape == expected.shape
        np.testing.assert_allclose(made, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", COMPUTED)
def test_many_threads_compute_what_one_does(name: str) -> None:
    of = COMPUTED[name]
    qkv = drawn(of, of.room - 1, 5)
    one, many = (opened(name, threads).run("attention", qkv, np.array([0]))[0] for threads in (1, 5))
    np.testing.assert_array_equal(one, many)


def test_large_scores_stay_numbers() -> None:
    """A softmax of one: the row that is most alike, whatever the others are."""
    of = COMPUTED["equal"]
    qkv = drawn(of, 100, 6, spread=100)
    (made,) = opened("equal").run("attention", qkv, np.array([0]))
    np.testing.assert_allclose(made, Reference(of).run(qkv, 0), rtol=1e-3, atol=1e-2)


def test_what_stands_behind_the_position_is_not_read() -> None:
    of = COMPUTED["odd"]
    program, other = opened("odd"), opened("odd")
    program.run("attention", np.full_like(drawn(of, 60, 0), np.nan), np.array([0]))
    for start, count in ((0, 20), (20, 1), (21, 8)):
        qkv = drawn(of, count, start)
        made, alone = (one.run("attention", qkv, np.array([start]))[0] for one in (program, other))
        np.testing.assert_array_equal(made, alone)


def test_what_is_kept_lies_where_the_file_says() -> None:
    of, program, other = COMPUTED["grouped"], opened("grouped"), opened("grouped")
    keys, values = executorch.read(FOLDER / "grouped.pte").methods["attention"].caches
    assert keys.shape == values.shape == (1, of.room, of.kv_heads, of.width)
    qkv, row = drawn(of, 20, 3), of.kv_heads * of.width * 4
    program.run("attention", qkv, np.array([0]))
    for cache, end in ((keys, of.heads + of.kv_heads), (values, of.heads + 2 * of.kv_heads)):
        held = program.read("attention", cache.memory, cache.offset, 20 * row)
        np.testing.assert_array_equal(
            held.view(np.float32).reshape(20, of.kv_heads, -1), qkv[0, :, end - of.kv_heads : end]
        )
        other.write("attention", cache.memory, cache.offset, held)
    more = drawn(of, 5, 4)
    made, again = (one.run("attention", more, np.array([20]))[0] for one in (program, other))
    np.testing.assert_array_equal(made, again)


@pytest.mark.parametrize(
    ("place", "offset", "size"),
    [(-1, 0, 1), (9, 0, 1), (1, -1, 1), (1, 1 << 40, 1), (1, 1, 1 << 20), (1, (1 << 63) - 1, 1)],
)
def test_nothing_beyond_a_memory_is_read_or_written(place: int, offset: int, size: int) -> None:
    program = opened("grouped")
    with pytest.raises(Failure, match=r"no memory|of a memory of"):
        program.read("attention", place, offset, size)
    with pytest.raises(Failure, match=r"no memory|of a memory of"):
        program.write("attention", place, offset, np.zeros(size, np.uint8))
    program.close()
    with pytest.raises(Failure, match="the program is closed"):
        program.read("attention", 1, 0, 1)


@pytest.mark.parametrize(
    ("start", "count"), [(-1, 1), (70, 1), (69, 2), (2, 69), (1 << 40, 1), (-(1 << 63), 3), ((1 << 63) - 1, 3)]
)
def test_a_position_beyond_the_cache_is_an_error(start: int, count: int) -> None:
    of, program = COMPUTED["odd"], opened("odd")
    with pytest.raises(Failure, match=f"a cache of 70 positions has no room for {count} after {start}"):
        program.run("attention", drawn(of, count, 0), np.array([start]))
    qkv = drawn(of, 4, 1)
    np.testing.assert_allclose(
        program.run("attention", qkv, np.array([0]))[0], Reference(of).run(qkv, 0), rtol=1e-4, atol=2e-5
    )


@pytest.mark.parametrize(("start", "count"), [(-1, 1), (12, 1), (2, 11), ((1 << 63) - 1, 3)])
def test_no_position_beyond_the_cache_is_read(start: int, count: int) -> None:
    with pytest.raises(Failure, match=f"a cache of 12 positions does not hold {count} after {start}"):
        opened("read").run("attention", drawn(PROGRAMS["read"], count, 0), np.array([start]))


def test_a_mask_is_refused() -> None:
    with pytest.raises(Failure, match="custom_sdpa with a mask is not known here"):
        opened("masked").run("attention", drawn(PROGRAMS["masked"], 3, 0), np.array([0]))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ((), "takes 2 arrays and gives 1"),
        ((np.zeros((1, 3, 10, 5)), np.array([0])), "Input 0 has unexpected scalar type"),
        ((np.zeros((3, 10, 5), np.float32), np.array([0])), "tensor rank which is immutable: old=4, new=3"),
        ((np.zeros((1, 3, 10, 6), np.float32), np.array([0])), r"update_cache of \[1, S, 2, 6\] into \[1, T, 2, 5\]"),
        ((np.zeros((1, 3, 10, 500), np.float32), np.array([0])), "60000 bytes, where it takes at most 13800"),
        ((np.zeros((1, 3, 10, 5), np.float32), np.array([0, 1])), "an array of 16 bytes, where it takes at most 8"),
        ((np.zeros((1, 3, 10, 5), np.complex64), np.array([0])), "no array that a program takes: complex64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays: tuple[Array, ...], said: str) -> None:
    program = opened("odd")
    with pytest.raises(Failure, match=said):
        program.run("attention", *arrays)
    assert np.isfinite(program.run("attention", drawn(COMPUTED["odd"], 2, 0), np.array([0]))[0]).all()


def test_programs_of_different_threads_live_side_by_side() -> None:
    """What one was made for is not taken from it: XNNPACK keeps the pool that it was given."""
    one, two = opened("equal", 1), opened("equal", 3)
    qkv = drawn(COMPUTED["equal"], 50, 0)
    for program, threads in ((one, 1), (two, 3), (one, 1)):
        program.run("attention", qkv, np.array([0]))
        assert edge_executorch.threads() == threads
    one.close()
    with pytest.raises(Failure, match="closed"):
        one.run("attention", qkv, np.array([0]))
    two.run("attention", qkv, np.array([0]))


def test_a_file_or_a_method_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="No such file"):
        Program(tmp_path / "none.pte", ["attention"], 1)
    (tmp_path / "empty.pte").write_bytes(b"")
    with pytest.raises(Failure):
        Program(tmp_path / "empty.pte", ["attention"], 1)
    with pytest.raises(Failure, match="forward"):
        Program(FOLDER / "one.pte", ["forward"], 1)
    for threads in (0, -1, 1025, (1 << 31) - 1):
        with pytest.raises(Failure, match=f"{threads} threads: it takes 1 to 1024"):
            Program(FOLDER / "one.pte", ["attention"], threads)
