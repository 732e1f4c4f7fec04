"""Projectors against the outputs of MobileVLM's own classes (tests/data/upstream_projectors.npz, commit 688fdec)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from edge import plugins
from edge.errors import CheckpointError
from exporters.models import projectors
from exporters.models.projectors import ProjectorConfig, find

UPSTREAM = Path(__file__).parents[1] / "data" / "upstream_projectors.npz"
ALL = plugins.names("exporters.models.projectors")


@torch.inference_mode()
@pytest.mark.parametrize(("kind", "key"), [("ldpnet", "v1"), ("ldpnetv2", "v2")])
def test_agrees_with_upstream(kind, key):
    with np.load(UPSTREAM) as data:
        start = f"{key}.weight."
        weights = {n.removeprefix(start): torch.from_numpy(data[n]) for n in data.files if n.startswith(start)}
        rows, expected = torch.from_numpy(data[f"{key}.input"]), data[f"{key}.output"]
    module, _ = find(kind)
    projector = module.Projector(ProjectorConfig(inputs=96, hidden=192, grid=24))
    projector.load_state_dict(weights)  # strict: the published names, no more and no fewer
    got = projector.eval()(rows).numpy()
    assert got.shape == (1, 144, 192)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


@torch.inference_mode()
def test_linear_and_mlp_by_hand():
    generator = np.random.default_rng(0)
    rows, first, second = (generator.standard_normal(s).astype(np.float32) for s in ((1, 16, 8), (12, 8), (12, 12)))
    bias = generator.standard_normal(12).astype(np.float32)
    linear = find("linear")[0].Projector(ProjectorConfig(8, 12, grid=4))
    linear.load_state_dict({"weight": torch.from_numpy(first), "bias": torch.from_numpy(bias)})
    np.testing.assert_allclose(linear(torch.from_numpy(rows)).numpy(), rows @ first.T + bias, atol=1e-5)
    module, depth = find("mlp2x_gelu")
    mlp = module.Projector(ProjectorConfig(8, 12, grid=4, depth=depth))
    state = {"0.weight": first, "0.bias": bias, "2.weight": second, "2.bias": -bias}
    mlp.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    inner = (rows @ first.T + bias).astype(np.float64)
    erf = np.vectorize(math.erf)
    gelu = inner * 0.5 * (1 + erf(inner / np.sqrt(2)))  # exact, not the tanh one
    np.testing.assert_allclose(mlp(torch.from_numpy(rows)).numpy(), gelu @ second.T - bias, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3, 12])
def test_mlp_depth_is_in_its_name(depth):
    module, found = find(f"mlp{depth}x_gelu")
    layers = module.Projector(ProjectorConfig(8, 12, grid=4, depth=found)).state_dict()
    assert [name for name in layers if name.endswith("weight")] == [f"{2 * i}.weight" for i in range(depth)]


@pytest.mark.parametrize(
    "kind", ["", "ldp", "ldpnetv3", "mlpx_gelu", "mlp0x_gelu", "mlp2x_gelu2", "LINEAR", "../linear"]
)
def test_unknown_kind_lists_the_legal_ones(kind):
    with pytest.raises(CheckpointError, match="mm_projector_type") as caught:
        find(kind)
    assert repr(kind) in caught.value.message
    assert (
        "c-abs, d-abs, ldpnet, ldpnetv2, linear, minigpt, mlp{depth}x_gelu, pixel_shuffle, internvl, qformer"
        in caught.value.hint
    )


@torch.inference_mode()
@pytest.mark.parametrize("name", ALL)
def test_tiny_twin_gives_finite_rows(name):
    module = plugins.load("exporters.models.projectors", name)
    projector = module.tiny().eval()
    grid = getattr(projector, "grid", 4)
    config = getattr(projector, "config", ProjectorConfig(inputs=32, hidden=64, grid=grid))
    rows = projector(torch.randn(2, grid * grid, 32, generator=torch.Generator().manual_seed(0)))
    assert rows.shape == (2, module.tokens(config), 64)
    assert torch.isfinite(rows).all()
    assert rows.std() > 1e-3
    assert torch.equal(
        module.tiny().state_dict()[next(iter(projector.state_dict()))], next(iter(projector.parameters()))
    )


@torch.inference_mode()
@pytest.mark.parametrize(("name", "grid", "tokens"), [("ldpnet", 5, 9), ("ldpnet", 16, 64), ("ldpnetv2", 16, 144)])
def test_rows_of_other_grids(name, grid, tokens):
    module, _ = find(name)
    config = ProjectorConfig(inputs=8, hidden=32, grid=grid)
    rows = module.Projector(config)(torch.zeros(1, grid * grid, 8))
    assert module.tokens(config) == rows.shape[1] == tokens


@pytest.mark.parametrize("kind", ["ldpnet", "ldpnetv2"])
def test_a_class_token_has_no_place_on_a_grid(kind):
    with pytest.raises(CheckpointError, match="cls_patch"):
        find(kind)[0].Projector(ProjectorConfig(8, 32, grid=4, cls=True))


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
def test_a_class_token_is_a_row(kind):
    assert find(kind)[0].tokens(ProjectorConfig(8, 32, grid=4, cls=True)) == 17


def test_kinds_are_told_apart_without_importing_them():
    kinds = [plugins.facts(projectors.__name__, name)["KIND"] for name in ALL]
    assert len(set(kinds)) == len(kinds)
