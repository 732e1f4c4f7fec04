from __future__ import annotations

import numpy as np
import pytest
import torch

from exporters.quantization import integers


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
