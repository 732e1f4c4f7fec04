"""Activations rounded in torch, against the engines that do it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from exporters.models.layers import Linear
from exporters.quantization.activations import Kind, rounded, rounding
from exporters.quantization.integers import BLOCK

KINDS: tuple[Kind, ...] = ("tensor", "row", "block", "superblock")


@pytest.fixture(scope="module")
def dynamic_quantize() -> Any:
    """ONNX's DynamicQuantizeLinear and back, by ONNX Runtime."""
    floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "K"]) for name in "xy"]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "rounded", floats[:1], floats[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


@given(seed=st.integers(0, 2**32 - 1), outlier=st.sampled_from([0.0, 1.0, -30.0, 1000.0]), shift=st.floats(-5, 5))
@settings(max_examples=50, deadline=None)
def test_a_tensor_is_rounded_as_onnx_runtime_does(
    dynamic_quantize: Any, seed: int, outlier: float, shift: float
) -> None:
    x = np.random.default_rng(seed).normal(shift, 1, (5, 48)).astype(np.float32)
    x[2, 7] += outlier
    ours, theirs = rounded(torch.from_numpy(x), "tensor").numpy(), dynamic_quantize(x)
    step = (max(x.max(), 0) - min(x.min(), 0)) / 255
    # Where x lies in the middle of two levels, the last digit of the scale decides.
    assert np.isclose(ours, theirs, atol=step * 1e-3).mean() > 0.99
    assert np.abs(ours - theirs).max() <= step * 1.01


@given(seed=st.integers(0, 2**32 - 1), columns=st.integers(1, 300))
def test_no_number_is_off_by_more_than_half_a_level_of_its_group(seed: int, columns: int) -> None:
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(seed))
    x[1] *= 100
    levels = {
        "tensor": (x.clamp(min=0).max() - x.clamp(max=0).min()) / 255,
        "row": (x.clamp(min=0).amax(-1, keepdim=True) - x.clamp(max=0).amin(-1, keepdim=True)) / 255,
        **{
            kind: torch.cat([b.abs().amax(-1, keepdim=True).expand_as(b) for b in x.split(size, -1)], -1) / 127
            for kind, size in (("block", BLOCK), ("superblock", 256))
        },
    }
    for kind in KINDS:
        # The zero point is a level too, which may move both ends by half a level.
        allowed = 0.5 if "block" in kind else 1.0
        assert ((rounded(x, kind) - x).abs() <= levels[kind] * allowed * 1.001 + 1e-9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_zero_stays_zero(kind: Kind) -> None:
    assert (rounded(torch.zeros(2, 40), kind) == 0).all()
    x = torch.tensor([[0.0, 3.0, 7.7]])
    assert rounded(x, kind)[0, 0] == 0


def test_only_the_named_linears_are_rounded_and_only_within() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(Linear(64, 64), Linear(64, 8))
    x = torch.randn(4, 64)
    plain = module(x)
    with rounding(module, {"0": "row", "1": "none"}):
        inside = module(x)
    assert not torch.equal(inside, plain)
    assert torch.equal(inside, module[1](module[0](rounded(x, "row"))))
    assert torch.equal(module(x), plain)
