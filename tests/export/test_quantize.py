from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from edge import plugins
from edge.bundle.manifest import ROLES
from edge.decoders.embedding_table import EmbeddingTable
from exporters.quantization import embedding_table, integers


def weights(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("columns", [32, 96, 33, 31, 1])
@pytest.mark.parametrize(("bits", "levels"), [(4, 15), (8, 254)])
def test_blockwise_error_is_within_a_level(columns, bits, levels):
    weight = weights(7, columns)
    packed = integers.blockwise(weight, bits)
    found = packed.dequantized()
    assert found.shape == weight.shape
    padded = torch.nn.functional.pad(weight, (0, -columns % 32)).view(7, -1, 32)
    span = padded.abs().amax(-1)
    # Four bits may clip the peak of a block to serve the rest of it: up to the last reach of the search.
    bound = span * (0.45 if bits == 4 else 1.01 / levels)
    error = torch.nn.functional.pad((found - weight).abs(), (0, -columns % 32)).view(7, -1, 32).amax(-1)
    assert (error <= bound + 1e-7).all()
    assert packed.values.min() >= (-8 if bits == 4 else -127)
    assert packed.values.max() <= (7 if bits == 4 else 127)


def test_four_bits_are_better_than_rounding_to_the_peak():
    weight = weights(64, 256)
    blocks = weight.view(64, 8, 32)
    scale = blocks.abs().amax(-1, keepdim=True) / 7
    plain = ((blocks / scale).round().clamp(-8, 7) * scale).view(64, 256)
    ours = integers.blockwise(weight, 4).dequantized()
    assert (ours - weight).square().mean() < 0.85 * (plain - weight).square().mean()


@pytest.mark.parametrize("positive", [False, True])
def test_of_all_reaches_the_one_with_the_least_error_is_stored(positive):
    weight, importance = weights(5, 64, seed=4).double(), torch.rand(64, generator=torch.Generator().manual_seed(4))
    packed = integers.blockwise(weight.float(), 4, importance, positive=positive)
    weigh = (importance / importance.mean() + 0.01).double().view(2, 32)
    for row, block in np.ndindex(5, 2):
        x, w = weight[row].view(2, 32)[block], weigh[block]
        peak = x[x.abs().argmax()]
        errors = []
        for reach in (1.0, 0.94, 0.88, 0.82, 0.76, 0.70):
            levels = (x / (peak * reach / (7 if positive and peak > 0 else -8))).round().clamp(-8, 7)
            scale = (w * x * levels).sum() / (w * levels * levels).sum()
            scale = scale.bfloat16().double() if positive else scale
            errors.append(float((w * (x - scale * levels) ** 2).sum()))
        stored = packed.values[row, block] * packed.scales[row, block].double()
        assert float((w * (x - stored) ** 2).sum()) == pytest.approx(min(errors), rel=1e-4)


@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_and_threads_do_not_change_the_result(threads, monkeypatch):
    weight, before = weights(40, 64), torch.get_num_threads()
    whole = integers.blockwise(weight, 4)
    monkeypatch.setattr(integers, "_AT_ONCE", 64 * 3)
    try:
        torch.set_num_threads(threads)
        pieces = integers.blockwise(weight, 4)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(whole.values, pieces.values)
    assert torch.equal(whole.scales, pieces.scales)


@pytest.mark.parametrize(
    "make", [lambda w: integers.blockwise(w, 4), lambda w: integers.blockwise(w, 8), integers.per_channel]
)
def test_zeros_stay_zeros(make):
    assert torch.equal(make(torch.zeros(3, 64)).dequantized(), torch.zeros(3, 64))


def test_four_bit_values_on_the_grid_are_kept():
    levels = torch.tensor([[-8.0, 7, 3, -1] * 8, [8.0, -7, 2, 0] * 8]) * 0.25
    torch.testing.assert_close(integers.blockwise(levels, 4).dequantized(), levels)


def test_per_channel_rounds_to_127_steps():
    weight = weights(5, 40)
    packed = integers.per_channel(weight)
    np.testing.assert_allclose(packed.dequantized(), weight, atol=float(weight.abs().max()) / 127 / 2 * 1.001)
    assert (packed.values.abs().amax(1) == 127).all()


@pytest.mark.parametrize(
    ("format", "storage"),
    [
        ("onnx", "onnx.lower"),
        ("tflite", "tflite.weights"),
        ("executorch", "executorch.linears"),
        ("coreml", "coreml.weights"),
    ],
)
def test_a_scheme_is_stored_as_one_row_says(format, storage):
    """Each scheme of a part, or of a single layer of one, has its row, and no row is left over."""
    facts = plugins.facts("exporters.formats", format)
    stored = importlib.import_module(f"exporters.formats.{storage}").STORAGE
    whole = {scheme for role in ROLES for scheme in facts["SCHEMES"].get(role, ())}
    single = {scheme for role in ROLES for ladder in facts["WIDER"].get(role, {}).values() for scheme in ladder}
    assert set(stored) == whole | single


@pytest.mark.parametrize(("kind", "blocks"), [("fp32", 0), ("fp16", 0), ("int8", 2), ("int8_rows", 1)])
def test_an_embedding_table_is_what_its_file_holds(kind, blocks, tmp_path):
    table = weights(40, 64)
    exact = table.clone()
    files = embedding_table.write(table, kind, tmp_path)
    assert len(files) == 1 + bool(blocks)
    rows = np.load(files[0])
    assert rows.dtype == ("int8" if blocks else {"fp32": "float32", "fp16": "float16"}[kind])
    scales = np.load(files[1]) if blocks else np.ones((40, 1), np.float32)
    assert scales.shape == (40, max(1, blocks))
    found = np.empty((40, 64), np.float32)
    EmbeddingTable.open(files, 40, 64).gather(range(40), found)
    np.testing.assert_allclose(found, table.numpy(), rtol=1e-6)
    assert float((table - exact).abs().max()) <= {"fp32": 0.0, "fp16": 2e-3}.get(kind, 0.02)
