"""VQA accuracy: an answer against those of ten annotators, after the normalisation of the VQA challenge.

S. Antol et al., VQA: Visual Question Answering (ICCV 2015). The rules are those of the challenge's own evaluation, its
oddities included: results are comparable only so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_BETWEEN_DIGITS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32  # the challenge's evaluation removes no more
_SPELLED = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
    somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
    they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
    there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've 'ow's'at
"""


def normalise(answer: str) -> str:
    """As the challenge compares: punctuation and articles go, number words become digits, contractions are spelled."""
    kept = answer
    between_digits = _BETWEEN_DIGITS.search(answer)
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        kept = kept.replace(mark, "" if beside_space or between_digits else " ")
    words = (_DIGITS.get(word, word) for word in _PERIOD.sub("", kept, count=_PERIODS).lower().split())
    return " ".join(_contractions().get(word, word) for word in words if word not in _ARTICLES)


def prepare(answer: str) -> str:
    """As answers are prepared for submission: in lower case, a possessive parted from its word, then normalised."""
    parted = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise(parted.replace("\n", " ").replace("\t", " ").strip())


def accuracy(answer: str, others: Sequence[str]) -> float:
    """The mean, over the sets that leave one annotator out, of min(1, equal answers / 3). Both sides are normalised."""
    equal = sum(other == answer for other in others)
    with_one_less, with_all = min(1.0, (equal - 1) / 3), min(1.0, equal / 3)
    return (equal * with_one_less + (len(others) - equal) * with_all) / len(others)


@cache
def _contractions() -> dict[str, str]:
    """Each contraction by its spelling without one of its apostrophes."""
    found = {}
    for word in _SPELLED.split():
        for at, letter in enumerate(word):
            if letter == "'":
                found[word[:at] + word[at + 1 :]] = word
    return {**found, "somebody'd": "somebodyd"}
