"""The normalisation of VQA answers, and accuracy against ten annotators."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.evaluation.vqa import accuracy, normalise, prepare

words = st.lists(
    st.sampled_from(["the", "a", "none", "ten", "dont", "1,000", "U.S.", "it's", "-", "?!", ".5", "\t", "somebodyd've"])
    | st.text(st.sampled_from(string.ascii_letters + string.digits + string.punctuation + " \néİ²٣"), max_size=6),
    max_size=8,
).map("".join)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The Cat.", "cat"),
        ("two  dogs", "2 dogs"),
        ("None", "0"),
        ("dont walk", "don't walk"),
        ("youdve", "youdve"),  # of two apostrophes, one may be missing
        ("you'dve", "you'd've"),
        ("1,000", "1000"),
        ("1,000-2", "10002"),  # a comma between digits takes every mark away
        ("stop/go", "stop go"),
        ("stop / go", "stop go"),
        ("stop/ go/on", "stop goon"),  # beside a space once, a mark goes everywhere
        ("3.5", "3.5"),
        ("U.S.A.", "usa"),
        ("a", ""),
        ("", ""),
        ("." * 33 + "x", ".x"),  # 32 periods go, and no more
    ],
)
def test_what_the_challenge_makes_of_an_answer(answer: str, normal: str) -> None:
    """Each by GT-Vision-Lab/VQA a013f00, vqaEval.py: processPunctuation, then processDigitArticle."""
    assert normalise(answer) == normal


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("McDonald's", "mcdonald 's"),
        ("1,000", "1000"),
        ("Yes, it is?", "yes it is"),
        ("1,000-2", "1000 2"),
        ("Dont\tWalk\n", "don't walk"),
    ],
)
def test_what_is_submitted(answer: str, normal: str) -> None:
    """Each by haotian-liu/LLaVA c121f04, EvalAIAnswerProcessor of llava/eval/m4c_evaluator.py."""
    assert prepare(answer) == normal


@given(answer=words)
@settings(deadline=None)
def test_a_normal_answer_stays(answer: str) -> None:
    if answer.count(".") <= 32:
        assert normalise(normalise(answer)) == normalise(answer)


@given(answer=words)
@settings(deadline=None)
def test_a_submitted_answer_stays_but_for_a_possessive(answer: str) -> None:
    """The contraction `that's` is made from `thats`, and would be parted by a second preparation."""
    if answer.count(".") <= 32 and "'s" not in prepare(answer):
        assert prepare(prepare(answer)) == prepare(answer)


@given(answer=words)
@settings(deadline=None)
def test_nothing_is_left_of_what_goes(answer: str) -> None:
    found = normalise(answer)
    assert not set(found) & set(';/[]"{}()=+\\_-><@`,?!')
    assert not set(found.split(" ")) & {"a", "an", "the", "none", "one", "ten", "dont"}
    assert found == found.strip() and not re.search(r"\s\s", found)


@pytest.mark.parametrize(("equal", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_accuracy_by_the_number_of_annotators_who_agree(equal: int, score: float) -> None:
    """The challenge's page gives these: an answer of three others at least is right."""
    assert accuracy("x", ["x"] * equal + ["y"] * (10 - equal)) == pytest.approx(score)


@given(others=st.lists(st.sampled_from("xyz"), min_size=1, max_size=12))
@settings(deadline=None)
def test_accuracy_is_the_mean_of_leaving_one_out(others: list[str]) -> None:
    left_out = [others[:n] + others[n + 1 :] for n in range(len(others))]
    expected = sum(min(1, rest.count("x") / 3) for rest in left_out) / len(others)
    assert accuracy("x", others) == pytest.approx(expected)
