from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from edge.errors import EngineError, UsageError
from edge.inference.sampling import Sampler, Sampling

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15], np.float32))
logits = nps.arrays(np.float32, st.integers(1, 40), elements=st.floats(-20, 20, width=32))


def draws(sampling: Sampling, logits: np.ndarray = LOGITS, n: int = 4000, history: tuple[int, ...] = ()) -> np.ndarray:
    sampler = Sampler(sampling)
    return np.bincount([sampler.pick(logits, history) for _ in range(n)], minlength=len(logits)) / n


def test_greedy_takes_the_best_and_the_lowest_id_of_equals():
    assert Sampler(Sampling()).pick(LOGITS, []) == 1
    assert Sampler(Sampling()).pick(np.array([1, 3, 3, 2], np.float32), []) == 1
    assert Sampler(Sampling(top_k=1, temperature=1.0)).pick(np.array([1, 3, 3, 2], np.float32), []) == 1


def test_the_distribution_is_the_softmax():
    np.testing.assert_allclose(draws(Sampling(temperature=1.0, seed=0)), [0.1, 0.4, 0.05, 0.3, 0.15], atol=0.03)


def test_temperature_sharpens_and_flattens():
    squared = np.array([0.1, 0.4, 0.05, 0.3, 0.15]) ** 2
    np.testing.assert_allclose(draws(Sampling(temperature=0.5, seed=0)), squared / squared.sum(), atol=0.03)
    np.testing.assert_allclose(draws(Sampling(temperature=1e6, seed=0)), [0.2] * 5, atol=0.03)
    np.testing.assert_array_equal(draws(Sampling(temperature=1e-320, seed=0), n=50), [0, 1, 0, 0, 0])


def test_top_k_keeps_k_and_renormalises():
    np.testing.assert_allclose(draws(Sampling(1.0, top_k=2, seed=1)), [0, 4 / 7, 0, 3 / 7, 0], atol=0.03)
    np.testing.assert_allclose(draws(Sampling(1.0, top_k=99, seed=1)), draws(Sampling(1.0, seed=1)))
    equal = np.zeros(6, np.float32)
    assert set(np.flatnonzero(draws(Sampling(1.0, top_k=3, seed=1), equal))) == {0, 1, 2}


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, {1}), (0.39, {1}), (0.41, {1, 3}), (0.69, {1, 3}), (0.71, {1, 3, 4}), (0.96, {0, 1, 2, 3, 4})],
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
    assert set(np.flatnonzero(draws(Sampling(1.0, top_p=top_p, seed=2)))) == kept


def test_top_p_counts_within_top_k():
    # 0.4 of 0.7 is 0.57: enough for 0.5, which it would not be of the whole.
    assert set(np.flatnonzero(draws(Sampling(1.0, top_k=2, top_p=0.5, seed=2)))) == {1}


def test_repeat_penalty_divides_what_is_positive_and_multiplies_what_is_negative():
    values = np.array([4.0, 3.0, -1.0, -1.5, 0.0], np.float32)
    before = values.copy()
    sampler = Sampler(Sampling(repeat_penalty=2.0))
    assert sampler.pick(values, [0]) == 1
    assert sampler.pick(values, [0, 0, 0]) == 1  # once for each id, however often it was said
    assert sampler.pick(values, [0, 1]) == 0  # 2, 1.5
    assert sampler.pick(np.array([-1.0, -1.5], np.float32), [0]) == 1
    assert sampler.pick(values, []) == 0
    np.testing.assert_array_equal(values, before)


def test_a_seed_repeats_itself_and_another_does_not():
    one, same, other = (Sampler(Sampling(1.0, seed=seed)) for seed in (3, 3, 4))
    picks = [[sampler.pick(LOGITS, []) for _ in range(50)] for sampler in (one, same, other)]
    assert picks[0] == picks[1] != picks[2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_logit_that_is_no_number_is_an_engine_error(temperature, bad):
    values = LOGITS.copy()
    values[3] = bad
    with pytest.raises(EngineError, match=r"for token 3[\s\S]*edge verify"):
        Sampler(Sampling(temperature)).pick(values, [])
    with pytest.raises(EngineError, match="-inf"):
        Sampler(Sampling(temperature)).pick(np.full(4, -np.inf, np.float32), [])


def test_a_masked_logit_is_never_picked():
    values = LOGITS.copy()
    values[1] = -np.inf
    assert draws(Sampling(1.5, top_k=4, top_p=0.99, seed=0), values)[1] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_k": -1}, {"top_p": 0.0},
        {"top_p": 1.1}, {"top_p": math.nan}, {"repeat_penalty": 0.0}, {"repeat_penalty": math.inf}, {"seed": -1},
    ],
)  # fmt: skip
def test_values_out_of_range_are_a_usage_error(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UsageError, match=f"{name.replace('_', '-')} is {value}; it must be") as caught:
        Sampling(**wrong)
    assert caught.value.hint


@given(
    logits, st.floats(0, 5), st.integers(0, 50), st.floats(0.01, 1), st.floats(0.5, 2), st.integers(0, 9),
    st.lists(st.integers(0, 0), max_size=3),
)  # fmt: skip
def test_the_pick_is_one_of_the_allowed(values, temperature, top_k, top_p, penalty, seed, history):
    picked = Sampler(Sampling(temperature, top_k, top_p, penalty, seed)).pick(values, history)
    scores = values.astype(np.float64)
    for i in set(history):
        scores[i] = scores[i] / penalty if scores[i] > 0 else scores[i] * penalty
    heavier = np.sort(scores[scores > scores[picked] + 1e-5])[::-1]
    if temperature == 0:
        assert len(heavier) == 0
        return
    if top_k:
        assert len(heavier) < top_k
    with np.errstate(over="ignore"):
        weights = np.exp((np.sort(scores)[::-1] - scores.max()) / temperature)[: top_k or None]
    assert weights[: len(heavier)].sum() <= top_p * weights.sum() * (1 + 1e-4) + 1e-9
