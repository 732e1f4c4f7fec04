"""A component is judged: layers that its scheme would hurt are widened, and what it costs in the end is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from edge.errors import ParityError
from edge.recipes import Target
from exporters.judge import HELD, Judge
from exporters.models import vision
from exporters.models.decoders import llama
from exporters.models.encoder import Encoder
from exporters.models.projectors import mlp
from exporters.quantization import integers
from exporters.quantization.remedies import distance
from exporters.quantization.sensitivity import linears
from exporters.reference import Module, outputs

ONNX = Target("onnx", "w8a8")


def encoder(outlier: float) -> Encoder:
    """`outlier`: one channel of a norm is so many times larger, and the columns that read it so many times smaller."""
    tower = vision.find("clip").tiny()
    module = Encoder(tower, mlp.tiny()).eval().requires_grad_(False)
    layer = tower.layers[1]
    layer.layer_norm2.weight[3] *= outlier
    layer.layer_norm2.bias[3] *= outlier
    layer.mlp.fc1.weight[:, 3] /= outlier
    return module


def images(module: Encoder) -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.randn(2, *module.view_shape))


def judged(role: str, module: Module, samples: Sequence[Tensor], target: Target, *settled: Any, **how: Any) -> Judge:
    return Judge(role, module, samples, [outputs(module, sample) for sample in samples], target, *settled, **how)


def store(module: torch.nn.Module, widened: Mapping[str, str]) -> None:
    """As ONNX does."""
    for name, layer in linears(module).items():
        scheme = widened.get(f"{name}.weight", "w8a8")
        if scheme == "w8a8":
            layer.weight.copy_(integers.per_channel(layer.weight).dequantized())
        elif scheme == "w8":
            layer.weight.copy_(integers.blockwise(layer.weight, 8).dequantized())
        elif scheme == "fp16":
            layer.weight.copy_(layer.weight.half().float())


def test_a_layer_with_an_outlier_is_widened_and_the_loss_held() -> None:
    module = encoder(1000.0)
    judge = judged("vision", module, images(module), ONNX)
    assert judge.remedies is not None
    assert judge.remedies.before > HELD["vision"]
    assert "tower.layers.1.mlp.fc1.weight" in judge.widened
    store(module, judge.widened)
    cost = judge.cost()
    assert cost.samples == 2
    assert cost.loss == pytest.approx(judge.remedies.loss, rel=0.05)
    assert cost.loss <= HELD["vision"] * 1.05


def test_without_outliers_nothing_is_widened_and_nothing_measured() -> None:
    module = encoder(1.0)
    judge = judged("vision", module, images(module), ONNX)
    assert judge.widened == {}
    assert judge.remedies is not None
    assert judge.remedies.costs == {}
    assert set(judged("vision", module, images(module), ONNX, explain=True).cost().to_json()["linears"]) == set(
        linears(module)
    )


def test_what_is_settled_is_taken() -> None:
    module = encoder(1000.0)
    judge = judged("vision", module, images(module), ONNX, {})
    assert judge.widened == {} and judge.remedies is None
    store(module, {})
    with pytest.raises(ParityError, match=r"quantising costs the vision 0\.\d+ .*worst of 2.*more than 0\.001") as told:
        judge.require(judge.cost(), 1e-3, "vision", lambda: encoder(1000.0))
    named = str(told.value).splitlines()[1]
    assert named.startswith("  tower.layers.1.mlp.fc1: loses ")
    assert "times the median" in named
    assert "--scheme vision=" in str(told.value.hint) and "--max-loss " in str(told.value.hint)


def test_the_rounded_reference_differs_only_within_the_block() -> None:
    module = encoder(30.0)
    image = images(module)[0]
    exact = outputs(module, image)
    judge = judged("vision", module, [image], ONNX, {})
    assert judge.rounds
    with judge.rounding():
        assert distance(outputs(module, image), exact) > 1e-7
    assert torch.equal(outputs(module, image), exact)


@pytest.mark.parametrize("target", [Target("onnx", "fp16"), Target("coreml", "w4"), Target("gguf", "f16")])
def test_kernels_that_round_nothing_are_not_simulated(target: Target) -> None:
    decoder = llama.tiny().eval().requires_grad_(False)
    judge = judged("decoder", decoder, [torch.randn(1, 5, decoder.config.hidden)], target)
    assert not judge.rounds
    assert judge.remedies is None and judge.widened == {}
    assert judge.cost().loss == pytest.approx(0, abs=1e-12)


def test_a_decoder_is_judged_at_every_position() -> None:
    decoder = llama.tiny().eval().requires_grad_(False)
    rows = torch.randn(1, 5, decoder.config.hidden)
    assert outputs(decoder, rows).shape == (1, 5, decoder.config.vocab)
    judge = judged("decoder", decoder, [rows], Target("onnx", "w4"))
    assert judge.rounds
    before = judge.cost().loss
    for layer in linears(decoder).values():
        layer.weight.copy_(integers.blockwise(layer.weight, 4).dequantized())
    assert judge.cost().loss > before > 0
