"""Where a parameter's numbers come from: names, shapes before numbers are read, and each transform."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edge.errors import CheckpointError
from exporters.models.component import Component
from exporters.models.source import OnePlus, Permute, Scale, Source, Split, Transpose


class Stored(dict):
    """Counts what is read."""

    def __init__(self, **tensors):
        super().__init__(tensors)
        self.read = []

    def __getitem__(self, name):
        self.read.append(name)
        return super().__getitem__(name)

    def shape(self, name):
        return tuple(self.get(name).shape)


A, B = torch.arange(12.0).view(4, 3), -torch.arange(6.0).view(2, 3)
MADE = {
    "alone": (Source(("a",)), A),
    "joined": (Source(("a", "b")), torch.cat([A, B])),
    "a part": (Source(("a",), Split(1, 2)), A[1:3]),
    "a part of what is joined": (Source(("a", "b"), Split(3, 3)), torch.cat([A, B])[3:]),
    "permuted": (Source(("a",), Permute((2, 0, 3, 1))), A[[2, 0, 3, 1]]),
    "transposed": (Source(("a",), Transpose()), A.T),
    "scaled": (Source(("a",), Scale(-2.5)), -2.5 * A),
    "one plus": (Source(("a",), OnePlus()), 1 + A),
}


@pytest.mark.parametrize("name", MADE)
def test_a_parameter_is_what_its_source_makes(name):
    source, expected = MADE[name]
    stored = Stored(a=A.clone(), b=B.clone())
    component = Component("decoder", lambda: nn.Linear(*expected.shape[::-1], bias=False), {"weight": source})
    component.check(stored)
    assert stored.read == []
    loaded = component.load(stored).weight
    assert torch.equal(loaded, expected) and loaded.is_contiguous()
    assert float(loaded.abs().max()) <= source.largest(float(max(A.max(), B.abs().max())))
    loaded.data.add_(1)  # a mapped tensor must not be changed
    assert torch.equal(stored["a"], A) and torch.equal(stored["b"], B)


REFUSED = {
    "another width": (Source(("a", "c")), "cannot be joined"),
    "beyond the rows": (Source(("a",), Split(3, 2)), "there are no rows 3 to 5"),
    "no rows": (Source(("a",), Split(0, 0)), "there are no rows 0 to 0"),
    "twice the same row": (Source(("a",), Permute((0, 0, 1, 2))), "an order of 4 rows"),
    "too few rows": (Source(("a",), Permute((1, 0))), "an order of 2 rows"),
    "a vector transposed": (Source(("v",), Transpose()), "only a matrix"),
    "another shape": (Source(("a",)), r"wrong shape: a \[4, 3\]; expected \[9, 9\] in all"),
    "missing": (Source(("a", "nowhere")), "missing: nowhere"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_such_parameter_is_refused_before_a_number_is_read(name):
    source, match = REFUSED[name]
    stored = Stored(a=A, c=torch.zeros(2, 5), v=torch.zeros(3))
    component = Component("decoder", lambda: nn.Linear(9, 9, bias=False), {"weight": source})
    with pytest.raises(CheckpointError, match=match):
        component.check(stored)
    assert stored.read == []


@given(order=st.permutations(range(6)), first=st.integers(0, 5), count=st.integers(1, 6))
def test_shapes_are_those_of_the_numbers(order, first, count):
    x = torch.arange(24.0).view(6, 4)
    assert torch.equal(Permute(tuple(order))(x), torch.stack([x[i] for i in order]))
    if first + count > 6:
        with pytest.raises(ValueError, match="no rows"):
            Split(first, count).shape(tuple(x.shape))
    else:
        assert Split(first, count).shape(tuple(x.shape)) == tuple(Split(first, count)(x).shape)
