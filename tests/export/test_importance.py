from __future__ import annotations

import torch

from exporters.models.decoders import llama
from exporters.quantization import importance, integers


def test_it_is_the_mean_square_of_what_each_weight_is_multiplied_with():
    decoder = llama.tiny().eval()
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randn(1, length, 64, generator=generator) for length in (3, 5)]
    found = importance.measure(decoder, sequences)
    normed = torch.cat([decoder.layers[0].input_layernorm(rows)[0] for rows in sequences])
    torch.testing.assert_close(found["layers.0.qkv_proj.weight"], normed.square().mean(0))
    linears = {name for name, _ in decoder.named_parameters() if name.endswith(("proj.weight", "lm_head.weight"))}
    assert found.keys() == linears
    assert all(not layer._forward_pre_hooks for layer in decoder.modules())


def test_without_conversations_nothing_is_known():
    assert importance.measure(llama.tiny(), []) == {}


def test_it_moves_the_error_to_where_it_matters_least():
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(64, 128, generator=generator)
    matters = torch.rand(128, generator=generator).pow(4) * 10
    inputs = torch.randn(4000, 128, generator=generator) * matters.sqrt()

    def error(found):
        return ((found.dequantized() - weight) @ inputs.T).square().mean()

    assert error(integers.blockwise(weight, 4, matters)) < 0.9 * error(integers.blockwise(weight, 4))
