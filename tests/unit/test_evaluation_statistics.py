"""Intervals and tests against published figures, brute force, and what must hold of them."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.evaluation import intervals, metrics, paired
from edge.evaluation.intervals import percentile, replicates, wilson
from edge.evaluation.paired import compare, interval, mcnemar
from edge.evaluation.task import Question, Scored

counts = st.integers(0, 400)
scores = st.lists(st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]), min_size=1, max_size=60)


def question(number: int, image: str = "") -> Question:
    return Question(str(number), "?", None, image, ("yes",))


# Wilson


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(right: int, count: int, low: float, high: float) -> None:
    """R. G. Newcombe, Two-sided confidence intervals for the single proportion, Statistics in Medicine 17 (1998),
    table I, method 3."""
    assert wilson(right, count) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(right=counts, wrong=counts)
@settings(deadline=None)
def test_wilsons_interval_holds_the_share_and_mirrors(right: int, wrong: int) -> None:
    low, high = wilson(right, right + wrong)
    assert 0 <= low < high <= 1
    assert right + wrong == 0 or low <= right / (right + wrong) <= high
    assert wilson(wrong, right + wrong) == (pytest.approx(1 - high), pytest.approx(1 - low))


def test_more_questions_narrow_it() -> None:
    widths = [high - low for low, high in (wilson(n // 2, n) for n in (10, 100, 1000, 10_000))]
    assert widths == sorted(widths, reverse=True)
    assert wilson(5000, 10_000) == (pytest.approx(0.5 - 0.0098, abs=1e-4), pytest.approx(0.5 + 0.0098, abs=1e-4))


# bootstrap


def test_the_bootstrap_of_a_share_is_wilsons_nearly() -> None:
    right = np.arange(1000) % 5 > 0
    sums = np.stack([right, np.ones(1000)], axis=1).astype(float)
    found = percentile(replicates(sums, metrics.ratio), 0.8, 1000)
    assert found == pytest.approx(wilson(800, 1000), abs=0.004)
    assert found == percentile(replicates(sums, metrics.ratio), 0.8, 1000)


def test_answers_about_one_image_count_less_than_as_many_images() -> None:
    """Ten equal answers about each image: as good as one."""
    alone = [Scored(question(n, f"{n}"), "", float(n % 2)) for n in range(100)]
    together = [Scored(question(n, f"{n // 10}"), "", float(n // 10 % 2)) for n in range(1000)]
    (one,), (other,) = metrics.mean_score(alone), metrics.mean_score(together)
    assert one.value == other.value == 50
    assert other.high - other.low == pytest.approx(one.high - one.low, rel=0.1)


def test_independent_streams_add_in_squares() -> None:
    sums = np.stack([np.arange(400) % 2, np.ones(400)], axis=1).astype(float)
    one, other = (replicates(sums, metrics.ratio, stream) for stream in (0, 1))
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.1
    assert np.std(one + other) == pytest.approx(math.sqrt(2) * np.std(one), rel=0.1)


def test_clusters_that_are_all_alike_do_not_claim_certainty() -> None:
    found = metrics.mean_score([Scored(question(n), "", 1.0) for n in range(20)])[0]
    low, _ = wilson(20, 20)
    assert (found.low, found.value, found.high) == (pytest.approx(100 * low), 100, 100)
    assert percentile(np.full(9, 150.0), 150.0, 30, top=200.0) == tuple(200 * x for x in wilson(22.5, 30))


@given(values=scores, images=st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_the_bootstraps_interval_holds_the_mean(values: list[float], images: int) -> None:
    answered = [Scored(question(n, f"{n % images}"), "", value) for n, value in enumerate(values)]
    (found,) = metrics.mean_score(answered)
    assert found.value == pytest.approx(100 * sum(values) / len(values))
    assert -1e-9 <= found.low <= found.value <= found.high <= 100 + 1e-9


def test_nothing_gives_no_figure() -> None:
    assert metrics.share("accuracy", []) == metrics.mean_score([]) == []
    assert metrics.ratio(np.zeros((3, 2))).tolist() == [0, 0, 0]


# McNemar


def exact(better: int, worse: int) -> float:
    """By counting every way in which the pairs could have fallen."""
    count = better + worse
    distance = abs(better - Fraction(count, 2))
    ways = [sum(fall) for fall in itertools.product((0, 1), repeat=count)]
    return sum(abs(way - Fraction(count, 2)) >= distance for way in ways) / len(ways)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (0, 5), (3, 9), (6, 6), (7, 5), (2, 12)])
def test_few_pairs_are_tested_exactly(better: int, worse: int) -> None:
    assert mcnemar(better, worse) == pytest.approx(exact(better, worse))


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [
        (121, 59, 5.450094825427117e-06),
        (10, 15, 0.4237107971667936),
        (13, 13, 1.0),
        (40, 20, 0.014171388254012323),
        (300, 250, 0.03667469760670498),
    ],
)
def test_many_pairs_are_tested_with_continuity_correction(better: int, worse: int, p: float) -> None:
    """The figures are those of scipy 1.17.1: stats.chi2.sf((abs(b - c) - 1)**2 / (b + c), 1); of equal numbers, 1."""
    assert mcnemar(better, worse) == pytest.approx(p, rel=1e-9)


@given(better=counts, worse=counts)
@settings(deadline=None)
def test_mcnemars_test_is_symmetric(better: int, worse: int) -> None:
    assert mcnemar(better, worse) == mcnemar(worse, better)
    assert 0 <= mcnemar(better, worse) <= 1
    assert mcnemar(better, better) == pytest.approx(1, abs=0.12)


def test_a_more_uneven_split_is_less_probable() -> None:
    for count in (24, 25, 26, 60):
        found = [mcnemar(better, count - better) for better in range(count // 2 + 1)]
        assert found == sorted(found)


# the paired difference


def test_the_interval_is_agrestis_and_mins() -> None:
    """Worked by hand, for 86 pairs of which 11 and 3 differ: (b − c) / (n + 2) ± z √(b + c + 1 − (b − c)² / (n + 2)) /
    (n + 2)."""
    deltas = [1.0] * 11 + [-1.0] * 3 + [0.0] * 72
    half = intervals.Z * math.sqrt(15 - 64 / 88) / 88
    assert interval(deltas, [str(n) for n in range(86)]) == pytest.approx((8 / 88 - half, 8 / 88 + half))


def test_answers_about_one_image_widen_it() -> None:
    deltas = [1.0] * 10 + [-1.0] * 10 + [0.0] * 100
    alone = interval(deltas, [str(n) for n in range(120)])
    together = interval(deltas, [str(n // 10) for n in range(120)])
    assert together[1] - together[0] > 2.5 * (alone[1] - alone[0])
    balanced = interval(deltas, [str(n % 10) for n in range(120)])
    assert balanced == pytest.approx(alone)  # the larger of both


@given(first=scores, seed=st.integers(0, 9), images=st.integers(1, 30))
@settings(deadline=None)
def test_the_interval_holds_the_difference_and_turns_with_the_order(first: list[float], seed: int, images: int) -> None:
    second = list(np.random.default_rng(seed).permutation(first))
    clusters = [str(n % images) for n in range(len(first))]
    one, other = compare(first, second, clusters), compare(second, first, clusters)
    assert -1 <= one.low <= one.difference + 1e-12 and one.difference - 1e-12 <= one.high <= 1
    assert (one.better, one.worse, one.p, one.exact) == (other.worse, other.better, other.p, other.exact)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))


def test_equal_runs_are_no_worse_only_where_there_are_enough_questions() -> None:
    """Nothing differs in 10 questions, nor in 1000: the second says something."""

    def verdict(count: int) -> str:
        return compare([1.0] * count, [1.0] * count, [str(n) for n in range(count)]).verdict(0.005)

    assert (verdict(10), verdict(1000)) == ("open", "no worse")


def test_no_worse_is_a_test_with_a_margin() -> None:
    count = 4000
    clusters = [str(n) for n in range(count)]
    first = [1.0] * 3200 + [0.0] * 800
    lost = [0.0] * 40 + first[40:]  # a point
    found = compare(first, lost, clusters)
    assert found.difference == -0.01
    assert [found.verdict(margin) for margin in (0.0, 0.005, 0.01, 0.02)] == ["worse", "worse", "open", "no worse"]
    assert compare(lost, first, clusters).verdict(0.0) == "no worse"
    assert not found.exact and found.p < 1e-6


def test_the_interval_covers_what_it_should() -> None:
    """Of 2000 drawn experiments, with graded scores and three questions an image, some 95 % hold the truth."""
    random = np.random.default_rng(5)
    held = 0
    for _ in range(2000):
        image = random.normal(0, 1, 60).repeat(3)
        chance = 1 / (1 + np.exp(-(image + 1)))
        pair = [(random.random(180) < chance - shift).astype(float) for shift in (0.0, 0.05)]
        low, high = interval(pair[1] - pair[0], [str(n // 3) for n in range(180)])
        truth = float(np.mean(np.clip(chance - 0.05, 0, 1) - chance))
        held += low <= truth <= high
    assert 0.93 <= held / 2000 <= 0.985


def test_graded_scores_count_as_better_or_worse() -> None:
    found = compare([0.3, 0.6, 1.0, 0.0], [0.6, 0.3, 1.0, 1.0], list("abcd"))
    assert (found.better, found.worse, found.count) == (2, 1, 4)
    assert found.difference == pytest.approx(0.25)
    assert found.p == 1.0 and found.exact
    assert paired.EXACT_BELOW == 25
