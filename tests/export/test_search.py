"""Schemes of single layers under a budget, and a bundle as the recipe of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from exported import Exports

from edge.bundle.manifest import Bundle
from edge.errors import UsageError
from edge.recipes import Target
from exporters import targets
from exporters.quantization.budget import Choice
from exporters.search import Budget, Side, search

BASE = 1000  # bytes that no choice changes


@dataclass(frozen=True)
class Sides:
    """Two parts of two layers each; the second one's layers lose most."""

    def sides(self) -> list[Side]:
        def side(role: str, error: float) -> Side:
            steps = [("w4", 100, 1.0), ("w8", 200, 0.1), ("fp16", 400, 0.0)]
            choices = {
                f"{name}.weight": [Choice(scheme, size, share * error * weight) for scheme, size, share in steps]
                for name, weight in (("a", 1), ("b", 3))
            }
            return Side(cast("Any", SimpleNamespace(role=role)), Target("onnx", "w4"), choices)

        return [side("vision", 1), side("decoder", 10)]

    def foreseen(self, widened: Mapping[str, Mapping[str, str]]) -> tuple[int, int]:
        sizes = {"w8": 100, "fp16": 300}
        size = BASE + 400 + sum(sizes[scheme] for layers in widened.values() for scheme in layers.values())
        return size, 3 * size


def found(budget: Budget) -> dict[str, dict[str, str]]:
    case = Sides()
    return {role: dict(layers) for role, layers in search(case.sides(), budget, case.foreseen).items()}


def test_bytes_go_where_they_save_most() -> None:
    assert found(Budget(size=1400)) == {"vision": {}, "decoder": {}}
    assert found(Budget(size=1500)) == {"vision": {}, "decoder": {"b.weight": "w8"}}
    assert found(Budget(size=1600)) == {"vision": {}, "decoder": {"a.weight": "w8", "b.weight": "w8"}}
    everything = {"a.weight": "fp16", "b.weight": "fp16"}
    assert found(Budget(size=10_000)) == {"vision": everything, "decoder": everything}


@pytest.mark.parametrize("size", range(1400, 2700, 70))
def test_the_budget_holds(size: int) -> None:
    case = Sides()
    assert case.foreseen(found(Budget(size=size)))[0] <= size
    assert case.foreseen(found(Budget(memory=3 * size)))[1] <= 3 * size
    assert case.foreseen(found(Budget(size=size, memory=4300)))[1] <= 4300


@pytest.mark.parametrize(
    ("budget", "flag"), [(Budget(size=1399), "--target-size 1.4kB"), (Budget(memory=4199), "--max-ram 4.2kB")]
)
def test_a_budget_that_cannot_be_met_says_what_is_nearest(budget: Budget, flag: str) -> None:
    with pytest.raises(UsageError, match="the smallest choice of these schemes takes") as told:
        found(budget)
    assert flag in told.value.hint


def test_an_export_uses_up_its_budget_and_another_follows_it(exports: Exports, tmp_path: Path) -> None:
    usual = exports.export()
    limit = usual.bytes + 60_000
    done = exports.export(target_size=limit)
    manifest = Bundle.open(done.path).manifest
    graphs = 200_000  # are not foreseen, and are nothing beside a model of real size
    assert usual.bytes < done.bytes <= limit + graphs
    widened = {role: part.options.get("widened", {}) for part in manifest.parts for role in part.covers}
    assert widened["decoder"]  # of 4 bits, which lose most
    assert done.costs["decoder"].loss < usual.costs["decoder"].loss
    recipe = targets.resolve(None, (), str(done.path), None)
    assert recipe.targets == {"vision": Target("onnx", "w8a8"), "decoder": Target("onnx", "w4")}
    again = exports.export(recipe=str(done.path))
    files = [
        [file.sha256 for part in Bundle.open(path).manifest.parts for file in part.files]
        for path in (done.path, again.path)
    ]
    assert files[0] == files[1]


def test_another_scheme_drops_the_layers_that_were_chosen_for_the_old_one(exports: Exports) -> None:
    done = exports.export(target_size=exports.export().bytes + 40_000)
    recipe = targets.resolve(None, ("decoder=w8",), str(done.path), None)
    assert "decoder" not in recipe.widened
