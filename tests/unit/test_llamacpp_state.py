"""The check of llama.cpp's states, on states written here from the definition in its sources."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llamacpp_states import LAYERS, WIDTH, state

from edge.errors import EngineError
from edge.formats.llamacpp_state import require_state
from edge.types import Array


def require(made: Array, positions: int = 3, kind: str = "f16") -> None:
    require_state(made, positions, LAYERS, WIDTH, kind)


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("positions", [[0], [0, 1, 2], [2, 0, 1]])
def test_what_the_library_writes_passes(kind: str, transposed: bool, positions: list[int]) -> None:
    require(state(positions, kind, transposed=transposed), len(positions), kind)


def test_layers_that_see_a_window_have_a_cache_of_their_own() -> None:
    made = state([0, 1, 2], layers=1, caches=2)
    require(made)
    with pytest.raises(EngineError):
        require(made[:-1])
    with pytest.raises(EngineError):
        require(np.append(made, made[8:]))


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": [0, 1]},
        {"positions": [0, 1, 3]},
        {"positions": [0, 1, 1]},
        {"positions": [-1, 0, 1]},
        {"magic": 1},
        {"sequence": 1},
        {"shared": 2},
        {"layers": 3},
        {"row": 63},
        {"transposed": True, "width": 31},
        {"kind": "q8_0"},
    ],
)
def test_another_state_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match=r"no state of llama\.cpp for 3 positions of 2 layers in f16"):
        require(state(**({"positions": [0, 1, 2]} | changes)))


def test_a_width_that_blocks_do_not_divide_is_refused() -> None:
    with pytest.raises(EngineError):
        require_state(state([0], "q8_0"), 1, LAYERS, 16, "q8_0")


@given(at=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.booleans(), transposed=st.booleans())
@example(at=0, byte=0, cut=True, transposed=False)
@settings(max_examples=300, deadline=None)
def test_damage_outside_the_numbers_is_found(at: int, byte: int, cut: bool, transposed: bool) -> None:
    whole = state([0, 1, 2], transposed=transposed)
    damaged = whole[: at % len(whole)].copy() if cut else whole.copy()
    if not cut:
        damaged[at % len(whole)] = byte
    try:
        require(damaged)
    except EngineError:
        return
    changed = np.flatnonzero(damaged != whole)
    assert len(damaged) == len(whole)
    assert all(place >= 16 + 3 * 12 + 8 for place in changed), "cells and sizes are what the library trusts"
