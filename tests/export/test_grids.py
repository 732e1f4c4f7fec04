"""Projectors that see a grid, on grids from 5 to 30 and in every format, against torch on the weights as stored."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SPEC
from hypothesis import given
from hypothesis import strategies as st
from small_models import randomized, write
from torch.nn import functional as F

from edge import plugins
from edge.engines import open_part
from edge.spec import VLMSpec
from edge.types import OpenOptions, PartFiles
from edge.verify import distance
from exporters.evaluators import mil
from exporters.models import projectors
from exporters.models.component import Component
from exporters.models.encoder import Encoder
from exporters.models.pooling import windows
from exporters.models.projectors import ProjectorConfig
from exporters.models.vision import clip

OPTIONS = OpenOptions(threads=1, context=256)
GRIDS = range(5, 31)
FEW = (5, 7, 12, 16, 25, 30)
ROWS = {"ldpnet": lambda grid: ((grid + 1) // 2) ** 2, "ldpnetv2": lambda grid: 144}


@given(st.integers(1, 200), st.integers(1, 200))
def test_windows_are_those_of_torch(size, count):
    found = windows(size, count)
    pooled = F.adaptive_avg_pool1d(torch.eye(size)[None], count)[0].T.numpy()
    np.testing.assert_array_equal(found, pooled > 0)
    np.testing.assert_allclose(found / found.sum(axis=1, keepdims=True), pooled, rtol=1e-6)


def written(format, kind, scheme, grid, folder, **how):
    """An encoder without layers, so that its projector is most of it: patches of 2 x 2 pixels on a grid."""
    tower = clip.TowerConfig(image_size=2 * grid, patch_size=2, hidden=32, layers=1, heads=2, ffn=32, select_layer=0)
    projector, _ = projectors.find(kind)

    def build():
        sizes = ProjectorConfig(inputs=tower.hidden, hidden=64, grid=tower.grid)
        return Encoder(clip.Tower(tower), projector.Projector(sizes))

    torch.manual_seed(grid)
    module = randomized(build())
    spec = VLMSpec(
        dataclasses.replace(SPEC.image, size=tower.image_size),
        dataclasses.replace(SPEC.prompt, image_tokens=ROWS[kind](grid)),
        dataclasses.replace(SPEC.decoder, hidden=64),
        None,
    )
    checkpoint = SimpleNamespace(name="Tiny Model", license="cc0-1.0", sha256="0" * 64, spec=spec)
    writer = plugins.load("exporters.formats", format)
    component = Component("vision", build, {})
    made = write(writer, component, module, scheme, folder, checkpoint=checkpoint, options=how)
    part = PartFiles(format, scheme, ("vision", "projector"), made.files, made.inputs, made.outputs)
    return module, part, writer.SCHEMES["vision"][scheme]


def assert_computes(module, graph, grid, kind, tolerance):
    pixels = np.random.default_rng(grid).normal(size=(1, 3, 2 * grid, 2 * grid)).astype(np.float32)
    found = graph.run({"pixel_values": pixels})["image_embeds"]
    with torch.inference_mode():
        expected = module(torch.from_numpy(pixels)).numpy()
    assert found.shape == expected.shape == (1, ROWS[kind](grid), 64)
    error = distance(found, expected)
    assert error["cosine"] >= tolerance["cosine"], error
    assert error["max_abs"] <= tolerance.get("max_abs", np.inf), error


EXACT = {"max_abs": 2e-5, "cosine": 0.9999999}


ENGINES = {"onnx": ("onnxruntime",), "tflite": ("litert",), "executorch": ("executorch", "executorch_native")}
# We take pooling apart for TFLite: every grid in every scheme. Torch does for the others, in the same way and slowly:
# every grid once in ONNX; in ExecuTorch some below 12 rows, some above, and of either what divides and what does not.
SLOW = {
    ("fp32", "ldpnetv2"): {"onnx": GRIDS, "executorch": FEW},
    ("fp32", "ldpnet"): {"onnx": (7, 16), "executorch": (12, 25)},
    ("w8a8", "ldpnetv2"): {"onnx": (12, 25), "executorch": (7, 30)},
    ("w8a8", "ldpnet"): {"onnx": (5, 30), "executorch": (5, 16)},
}
CASES = [
    (format, *case, grid) for case, grids in SLOW.items() for format in ENGINES for grid in grids.get(format, GRIDS)
]


@pytest.mark.parametrize(("format", "scheme", "kind", "grid"), CASES)
def test_every_grid_is_computed_as_torch_does(format, scheme, kind, grid, tmp_path):
    module, part, tolerance = written(format, kind, scheme, grid, tmp_path)
    for engine in ENGINES[format]:
        graph = open_part(part, engine, OPTIONS)
        assert_computes(module, graph, grid, kind, EXACT if scheme == "fp32" else tolerance)


@pytest.mark.parametrize(("ane", "grid"), [*((False, grid) for grid in GRIDS), *((True, grid) for grid in FEW)])
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("scheme", ["fp16", "w8"])
def test_every_grid_is_computed_by_core_ml_as_torch_does(scheme, ane, kind, grid, tmp_path):
    """Without rounding of what is computed, and with it. A sixth, of LDP's activations, is rounded in any case."""
    module, part, tolerance = written("coreml", kind, scheme, grid, tmp_path, ane=ane)
    exact = EXACT if kind == "ldpnetv2" else {"max_abs": 3e-3, "cosine": 0.99999995}
    assert_computes(module, mil.evaluate(part, OPTIONS, "fp32"), grid, kind, exact)
    assert_computes(module, mil.open(part, OPTIONS), grid, kind, tolerance)
