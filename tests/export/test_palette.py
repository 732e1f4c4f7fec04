"""4-bit palettes: what they stand for, and that they are fitted."""

from __future__ import annotations

import pytest
import torch

from exporters.formats.coreml.palette import LEVELS, palettized


def weights(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "size"), [(32, 16), (24, 8), (6, 2), (5, 1)])
def test_each_group_of_rows_has_a_table_and_takes_its_nearest_entries(rows, size):
    weight = weights(rows, 40)
    found = palettized(weight)
    assert found.tables.shape == (rows // size, LEVELS) and found.tables.dtype == torch.float16
    assert found.indices.dtype == torch.uint8 and int(found.indices.max()) < LEVELS
    for row in range(rows):
        table = found.tables[row // size].float()
        assert bool((table.diff() >= 0).all())
        nearest = (weight[row, :, None] - table).abs().min(dim=1).values
        torch.testing.assert_close((found.dense()[row] - weight[row]).abs(), nearest)


def test_it_is_better_than_even_steps_and_no_worse_than_lloyd_says():
    weight = weights(16, 2048)
    error = (palettized(weight).dense() - weight).square().mean()
    step = (weight.max() - weight.min()) / (LEVELS - 1)
    even = ((weight - weight.min()) / step).round() * step + weight.min()
    assert error < 0.5 * (even - weight).square().mean()
    assert error < 1.1 * 0.01154  # the best that 16 levels can do of a normal distribution (Max, 1960)


def test_columns_that_matter_are_closer():
    weight, matter = weights(16, 64), torch.tensor([100.0] * 8 + [0.01] * 56)
    weight[:, :8] *= 0.1  # levels for all leave few for these
    plain, guided = ((palettized(weight, m).dense() - weight)[:, :8].square().mean() for m in (None, matter))
    assert guided < 0.5 * plain


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_weights_that_are_all_the_same(value):
    found = palettized(torch.full((16, 32), value)).dense()
    torch.testing.assert_close(found, torch.full((16, 32), value))


def test_chunks_do_not_change_the_result(monkeypatch):
    weight = weights(64, 48)
    whole = palettized(weight)
    monkeypatch.setattr("exporters.formats.coreml.palette._AT_ONCE", 48 * 16)
    parts = palettized(weight)
    assert torch.equal(whole.indices, parts.indices) and torch.equal(whole.tables, parts.tables)
