"""Bytes are spent where they save most error."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.quantization.budget import Choice, allocate

CHOICES = st.lists(
    st.builds(Choice, st.just("s"), st.integers(1, 50).map(float), st.integers(0, 100).map(float)),
    min_size=1,
    max_size=4,
)
TENSORS = st.dictionaries(st.text("abc", min_size=1, max_size=3), CHOICES, min_size=1, max_size=4)


def total(chosen: dict[str, Choice]) -> tuple[float, float]:
    return sum(c.bytes for c in chosen.values()), sum(c.error for c in chosen.values())


@given(tensors=TENSORS, limit=st.integers(0, 250))
@settings(max_examples=300, deadline=None)
def test_a_limit_of_bytes_holds_wherever_it_can(tensors: dict[str, list[Choice]], limit: int) -> None:
    chosen = allocate(tensors, limit=limit)
    smallest = sum(min(c.bytes for c in choices) for choices in tensors.values())
    used, error = total(chosen)
    assert used <= max(limit, smallest)
    assert all(chosen[name] in choices for name, choices in tensors.items())
    # No way to store them beats it by more than one step of a tensor is worth.
    every = [
        sum(c.error for c in way) for way in product(*tensors.values()) if sum(c.bytes for c in way) <= max(limit, used)
    ]
    step = max(max(c.error for c in choices) - min(c.error for c in choices) for choices in tensors.values())
    assert error <= min(every) + step * len(tensors)


@given(tensors=TENSORS, error=st.integers(0, 250))
@settings(max_examples=300, deadline=None)
def test_errors_are_brought_down_and_no_further(tensors: dict[str, list[Choice]], error: int) -> None:
    used, found = total(allocate(tensors, error=error))
    least = sum(min(c.error for c in choices) for choices in tensors.values())
    assert found <= max(error, least)
    ways = [way for way in product(*tensors.values()) if sum(c.error for c in way) <= max(error, least)]
    step = max(max(c.bytes for c in choices) - min(c.bytes for c in choices) for choices in tensors.values())
    assert used <= min(sum(c.bytes for c in way) for way in ways) + step * len(tensors)


def test_the_step_that_saves_most_for_a_byte_is_taken_first() -> None:
    tensors = {
        "large": [Choice("w4", 100, 10), Choice("w8", 200, 1)],
        "small": [Choice("w4", 10, 5), Choice("w8", 20, 1), Choice("fp16", 40, 0.9)],
    }
    chosen = allocate(tensors, limit=150)
    assert {name: choice.scheme for name, choice in chosen.items()} == {"large": "w4", "small": "fp16"}
    chosen = allocate(tensors, error=12)
    assert {name: choice.scheme for name, choice in chosen.items()} == {"large": "w4", "small": "w8"}


def test_a_choice_that_a_mixture_beats_is_never_taken() -> None:
    bad = Choice("w5", 19, 4.9)
    tensors = {"a": [Choice("w4", 10, 5), bad, Choice("w8", 20, 1)]}
    assert all(allocate(tensors, limit=limit)["a"] != bad for limit in range(40))
