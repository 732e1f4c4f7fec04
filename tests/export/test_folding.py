"""Every family says where its channels can be scaled, and its function stays what it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import randomized
from torch import nn

from edge import plugins
from edge.inputs.patches import packed
from exporters.models import decoders, folding, projectors, vision
from exporters.models.attention import GrowingCache
from exporters.models.decoders import LanguageModel, llama
from exporters.models.encoder import Encoder
from exporters.models.folding import Fold, Folding
from exporters.models.layers import LayerNorm, Linear
from exporters.models.projectors import ProjectorConfig, linear, mlp, pixel_shuffle
from exporters.models.vision import clip, internvit, siglip

PACKAGES = (decoders, vision, projectors)
FAMILIES = [(package.__name__, name) for package in PACKAGES for name in plugins.names(package.__name__)]


def tower(family, **changes):
    torch.manual_seed(0)
    return family.Tower(replace(family.tiny().config, **changes))


def encoder(see, project=linear, **told):
    config = see.config
    shape = ProjectorConfig(config.hidden, 24, config.grid, config.cls)
    return Encoder(see, project.Projector(projectors.configure(project, shape, told)))


def llama_of(**changes):
    torch.manual_seed(0)
    return llama.Decoder(replace(llama.tiny().config, **changes))


MADE = {
    "siglip, normalised": lambda: encoder(tower(siglip, select_layer=None)),
    "siglip": lambda: encoder(tower(siglip)),
    "clip, with its class token": lambda: encoder(tower(clip, select_feature="cls_patch")),
    "clip, of the embeddings": lambda: encoder(tower(clip, select_layer=0)),
    "clip and an MLP of ReLU": lambda: encoder(tower(clip), mlp, projector_hidden_act="relu"),
    "internvit of RMS norms, without biases": lambda: encoder(tower(internvit, rms=True, bias=False, qk_norm=False)),
    "siglip and pixel shuffle": lambda: encoder(tower(siglip, select_layer=None), pixel_shuffle),
    "llama with biases": lambda: llama_of(attention_bias=True, mlp_bias=True),
    "llama of one layer": lambda: llama_of(layers=1, kv_heads=1),
    "llama, tied": lambda: llama_of(tied=True),
}
CASES = {
    **{f"{package.rpartition('.')[2]}/{name}": (package, name) for package, name in FAMILIES},
    **MADE,
}


def build(case):
    made = CASES[case]
    module = plugins.load(*made).tiny() if isinstance(made, tuple) else made()
    return randomized(module)


def compute(module):
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        if isinstance(module, LanguageModel):
            c = module.config
            rows = torch.randn(1, 9, c.hidden, generator=generator)
            return module(rows, GrowingCache(c.heads, c.kv_heads, c.rope), everywhere=True)
        if hasattr(getattr(module, "config", None), "patches"):
            sides = [(5, 4), (2, 9)]  # patches of two views
            views = [np.random.default_rng(3).normal(size=(3, 14 * h, 14 * w)).astype(np.float32) for h, w in sides]
            return module(torch.from_numpy(np.concatenate([packed(v, module.config.patches) for v in views])))
        if isinstance(module, Encoder) or hasattr(getattr(module, "config", None), "image_size"):
            size = module.view_shape[-1] if isinstance(module, Encoder) else module.config.image_size
            return module(torch.randn(2, 3, size, size, generator=generator))
        grid = getattr(module, "grid", 4)
        return module(torch.randn(1, grid * grid, 32, generator=generator))


def linears(module):
    return {name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}


@pytest.mark.parametrize("case", CASES)
def test_every_linear_layer_is_spoken_of_once(case):
    module = build(case)
    found = folding.folding(module)
    named = [reader for fold in found.folds for reader in fold.readers] + [*found.unfolded, *found.reads]
    assert sorted(named) == sorted(linears(module))
    assert not isinstance(module, Encoder) or not found.reads
    assert all(fold.scales or fold.shifts for fold in found.folds)


@pytest.mark.parametrize("case", CASES)
def test_a_fold_changes_the_weights_and_not_the_function(case):
    module = build(case)
    before, generator = compute(module), torch.Generator().manual_seed(4)
    for fold in folding.folding(module).folds:
        given = fold.rows(module.get_submodule(fold.source).weight).shape[0]
        scale = torch.exp(2 * torch.randn(given, generator=generator)) if fold.scales else None
        shift = torch.randn(given, generator=generator) if folding.can_shift(module, fold) else None
        reader = module.get_submodule(fold.readers[0])
        seen = []
        handle = reader.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        compute(module)
        weights = reader.weight.clone()
        folding.apply(module, fold, scale, shift)
        after = compute(module)
        handle.remove()
        torch.testing.assert_close(after, before, rtol=2e-4, atol=2e-4 * float(before.abs().max()))
        # What is read is what was asked for.
        expected = seen[0] if shift is None else seen[0] - fold.read(shift)
        torch.testing.assert_close(
            seen[1], expected if scale is None else expected / fold.read(scale), rtol=1e-3, atol=2e-4
        )
        assert scale is None or not torch.equal(reader.weight, weights)


@pytest.mark.parametrize("case", CASES)
def test_powers_of_two_change_no_digit(case):
    module = build(case)
    before, generator = compute(module), torch.Generator().manual_seed(5)
    for fold in folding.folding(module).folds:
        given = fold.rows(module.get_submodule(fold.source).weight).shape[0]
        if fold.scales:
            folding.apply(module, fold, 2.0 ** torch.randint(-6, 7, (given,), generator=generator))
    torch.testing.assert_close(compute(module), before, rtol=1e-6, atol=1e-6 * float(before.abs().max()))


def test_grouped_heads_share_a_channel():
    fold = Fold("qkv", ("o",), width=2, repeats=3)
    channels = torch.tensor([1.0, 2.0, 3.0, 4.0])
    columns = fold.read(channels)
    assert columns.tolist() == [1, 2, 1, 2, 1, 2, 3, 4, 3, 4, 3, 4]
    assert torch.equal(fold.given(columns), channels)
    assert fold.given(torch.arange(12.0)).tolist() == [4, 5, 10, 11]


def test_what_is_given_is_read_by_the_next_module():
    before = Folding(gives=Fold("norm", ()))
    after = Folding(reads=("",), unfolded={"back": folding.ACTIVATION})
    found = folding.joined([before.within("a"), after.within("b")])
    assert found.folds == (Fold("a.norm", ("b",)),)
    assert found.unfolded == {"b.back": folding.ACTIVATION}
    alone = folding.joined([Folding(), Folding(reads=("first",)).within("b")])
    assert alone.unfolded == {"b.first": folding.SHARED}


def test_without_a_bias_nothing_is_shifted():
    fold = Fold("norm", ("read",), shifts=True)
    made = nn.ModuleDict({"norm": LayerNorm(4), "read": Linear(4, 4)})
    assert folding.can_shift(made, fold)
    assert not folding.can_shift(made, replace(fold, shifts=False))
    made["read"] = Linear(4, 4, bias=False)
    assert not folding.can_shift(made, fold)
