"""Linears with outliers are found, widened as far as it helps, and no others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from exporters.models import vision
from exporters.models.layers import Linear
from exporters.quantization import remedies
from exporters.quantization.remedies import Remedies, distance
from exporters.quantization.sensitivity import layer_rounding, linears, measure, simulated

LADDER = ("w8a8", "w8", "fp32")
ROUNDINGS = {scheme: layer_rounding("onnx", scheme) for scheme in LADDER}
BOUND = 2e-4


class Spiky(nn.Module):
    """Three linears; what the second one is given has one channel, or one row, that is far larger than the rest."""

    def __init__(self, factor: float, where: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = Linear(64, 64), Linear(64, 64), Linear(64, 64)
        self.factor, self.where = factor, where

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        spike = torch.ones(y.shape[-2:])
        spike[:, 5] *= self.factor if self.where == "channel" else 1
        spike[3] *= self.factor if self.where == "row" else 1
        y = self.second(y * spike)
        y = y / y.norm(dim=-1, keepdim=True)  # rows of one size again, as a norm makes them
        out: Tensor = self.third(y)
        return out


def settle(module: nn.Module, ladder: Sequence[str], bound: float, *, explain: bool = False) -> Remedies:
    given = samples(module)
    exact = [sample() for sample in given]
    return remedies.settle(
        module, given, exact, ladder, {**ROUNDINGS, "same": ROUNDINGS["w8a8"]}, bound, explain=explain
    )


def samples(module: nn.Module) -> list[Callable[[], Tensor]]:
    torch.manual_seed(1)
    return [partial(module, x) for x in torch.randn(2, 1, 20, 64)]


@pytest.mark.parametrize("where", ["channel", "row"])
@pytest.mark.parametrize("factor", [30.0, 1000.0])
def test_the_linear_with_the_outlier_is_widened_and_no_other(factor: float, where: str) -> None:
    module = Spiky(factor, where)
    found = settle(module, LADDER, BOUND)
    assert found.before > BOUND >= found.loss
    assert set(found.widened) == {"second"}
    if where == "channel":
        assert found.costs["second"].outliers > factor / 3 > found.costs["third"].outliers
    else:  # a scale for each block of a row is enough where a row is larger
        assert found.widened == {"second": "w8"}


def test_without_outliers_nothing_is_widened() -> None:
    module = Spiky(1.0, "row")
    found = settle(module, LADDER, BOUND)
    assert found.widened == {}
    assert found.loss == found.before <= BOUND


def test_a_bound_that_cannot_be_held_ends_on_the_last_rung() -> None:
    module = Spiky(30.0, "row")
    found = settle(module, LADDER[:2], 0.0)
    assert set(found.widened.values()) == {"w8"}
    assert found.loss > 0


def test_a_rung_that_does_not_help_is_left_out() -> None:
    """Blocks do not help a channel that is alone in its block: they would only be paid for."""
    module = Spiky(1000.0, "channel")
    found = settle(module, ("w8a8", "same", "fp32"), BOUND)
    assert found.widened == {"second": "fp32"}


def test_what_is_simulated_ends_with_the_block() -> None:
    module = Spiky(30.0, "row")
    (sample,) = samples(module)[:1]
    exact = sample()
    with simulated(module, {"second": ROUNDINGS["w8a8"]}):
        assert distance(sample(), exact) > 0
    assert torch.equal(sample(), exact)
    with pytest.raises(RuntimeError, match="on purpose"), simulated(module, {"second": ROUNDINGS["w8a8"]}):
        raise RuntimeError("on purpose")
    assert torch.equal(sample(), exact)
    measure(module, sample, lambda _: ROUNDINGS)
    assert torch.equal(sample(), exact)


def test_the_cost_of_a_linear_is_that_of_its_own_rounding() -> None:
    module = Spiky(1.0, "row")
    sample = samples(module)[0]
    found = measure(module, sample, lambda _: ROUNDINGS)
    assert found.keys() == linears(module).keys()
    exact = sample()
    with simulated(module, {"third": ROUNDINGS["w8a8"]}):
        off = sample()
    rows = (off - exact).square().sum(-1) / exact.square().sum(-1)
    assert found["third"].errors["w8a8"] == pytest.approx(float(rows.mean().detach()), rel=1e-3)
    assert all(cost.errors["fp32"] < 1e-12 for cost in found.values())


def test_each_linear_is_measured_where_that_is_asked_for() -> None:
    module = Spiky(1.0, "row")
    assert settle(module, LADDER, BOUND).costs == {}
    told = settle(module, LADDER, BOUND, explain=True)
    assert told.widened == {}
    assert told.costs.keys() == {"first", "second", "third"}


def test_a_linear_that_is_never_called_is_left_alone() -> None:
    module = Spiky(30.0, "row")
    module.spare = Linear(3, 3)
    found = settle(module, LADDER, 0.0)
    assert "spare" not in {*found.widened, *found.costs}


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_towers_of_every_family_are_measured(kind: str) -> None:
    tower = vision.find(kind).tiny()
    size = tower.config.image_size
    found = measure(tower, lambda: tower(torch.randn(1, 3, size, size)), lambda _: ROUNDINGS)
    assert found.keys() == linears(tower).keys()


def test_a_rung_that_is_not_enough_is_left_by_the_first_sample_that_shows_it() -> None:
    module = Spiky(30.0, "row")
    given = samples(module)
    exact = [sample() for sample in given]
    asked: list[int] = []

    def counted(index: int) -> Tensor:
        asked.append(index)
        return given[index]()

    remedies.settle(module, [partial(counted, 0), partial(counted, 1)], exact, LADDER[:2], ROUNDINGS, 0.0)
    last = asked[-2:]
    assert last == [0, 1]  # what is told is of all
    assert asked.count(0) > asked.count(1) + 1  # and one call that only asks whether there is anything to do


def test_the_distance_is_that_of_all_numbers_in_float64() -> None:
    torch.manual_seed(2)
    right = torch.randn(3, remedies._PIECE - 7)
    found = right + 1e-3 * torch.randn_like(right)
    a, b = found.double().flatten(), right.double().flatten()
    wanted = 1 - float(a @ b / (a.norm() * b.norm()))
    assert distance(found, right) == pytest.approx(wanted, rel=1e-6)
    assert distance(torch.zeros(4), torch.ones(4)) == 1
    assert math.isnan(distance(torch.tensor([math.nan, 1.0]), torch.ones(2)))
