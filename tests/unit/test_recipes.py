"""Recipes are data: what they and the devices name must exist."""

from __future__ import annotations

import pytest

from edge import devices, plugins
from edge.bundle.manifest import MEASURES, ROLES
from edge.engines import installed_engines
from edge.recipes import BYTES_PER_WEIGHT, DEFAULT, NO_DECODER, RECIPES, Recipe, Target

FORMATS = "exporters.formats"


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_recipe_is_legal(recipe: Recipe) -> None:
    """Each target stands in the table of its format."""
    assert {"vision", "decoder"} <= set(recipe.targets) <= {"vision", "decoder", "mmproj"}
    for role, target in recipe.targets.items():
        assert target.scheme in plugins.facts(FORMATS, target.format)["SCHEMES"][role]


def test_a_recipe_is_found_by_its_name() -> None:
    assert {name: recipe.name for name, recipe in RECIPES.items()} == {name: name for name in RECIPES}
    assert DEFAULT in RECIPES
    assert next(iter(RECIPES)) == DEFAULT  # they stand in order of preference


def test_the_default() -> None:
    targets = RECIPES[DEFAULT].targets
    assert targets == {"vision": Target("onnx", "w8a8"), "decoder": Target("onnx", "w4")}
    assert str(targets["decoder"]) == "onnx w4"


@pytest.mark.parametrize("device", devices.profiles(), ids=lambda device: device.id)
def test_a_device_names_a_recipe_that_an_engine_of_its_own_opens(device: devices.DeviceProfile) -> None:
    recipe = RECIPES[device.recipe]
    opens = {engine.name: engine.formats for engine in installed_engines()}
    for role, target in recipe.targets.items():
        assert any(target.format in opens.get(engine, ()) for engine in device.engines[role]), role


@pytest.mark.parametrize("format", plugins.names(FORMATS))
def test_a_format_has_a_recipe_and_states_its_tolerances(format: str) -> None:
    facts = plugins.facts(FORMATS, format)
    assert any(recipe.targets["decoder"].format == format for recipe in RECIPES.values())
    for role, table in facts["SCHEMES"].items():
        for scheme, tolerance in table.items():
            # What lies beside the parts is opened by nothing here.
            assert bool(tolerance) == (role in ROLES), f"{role} {scheme}: nothing would be proven"
            assert set(tolerance) <= set(MEASURES if role == "decoder" else MEASURES[:2])
            assert 0 < BYTES_PER_WEIGHT[format][scheme] <= 4
    single = {scheme for table in facts["WIDER"].values() for wider in table.values() for scheme in wider}
    written = {scheme for table in facts["SCHEMES"].values() for scheme in table} | single
    decoder = {scheme for scheme in written if (format, scheme) not in NO_DECODER}
    assert (BYTES_PER_WEIGHT[format].keys(), facts["SCHEMES"]["decoder"].keys()) == (written, decoder)
