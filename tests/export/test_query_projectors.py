"""Resampler and Q-Former: their rows are those of transformers' own classes; and how a checkpoint of them is read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from llava_kin import VISION, as_factory
from safetensors.torch import load_file, save_file
from small_models import randomized
from test_llava_kin import saved
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from edge.errors import CheckpointError
from edge.inference.session import load
from exporters.export import ExportRequest, export
from exporters.models.projectors import ProjectorConfig, find, qformer, resampler
from exporters.sources.checkpoint import open_checkpoint

SHAPE = ProjectorConfig(inputs=32, hidden=64, grid=4)


@dataclass(frozen=True)
class Small(qformer.Config):
    """A BERT that is not base."""

    width: int = 48
    layers: int = 3
    heads: int = 4
    inner: int = 96


KINDS = {
    "resampler": resampler.Config(**asdict(SHAPE), queries=9, layers=2),
    "qformer": Small(**asdict(SHAPE), queries=9),
}


def resampled(projector: resampler.Projector, rows: torch.Tensor) -> torch.Tensor:
    """By Flamingo's block as Idefics has it, with GELU and TinyLLaVA-Factory's first linear layer."""
    state, hidden = projector.state_dict(), projector.norm.weight.shape[0]
    vision = SimpleNamespace(embed_dim=hidden)
    told = SimpleNamespace(perceiver_config=SimpleNamespace(qk_layer_norms_perceiver=False), vision_config=vision)
    layers, queries = len(projector.layers), state["latents"].shape[0]
    upstream = IdeficsPerceiverResampler(told, hidden, layers, resampler.HEADS, resampler.HEAD_DIM, queries)
    inner = resampler.HEADS * resampler.HEAD_DIM
    renamed = {"latents": state["latents"]} | {f"layer_norm.{n}": state[f"norm.{n}"] for n in ("weight", "bias")}
    for index in range(layers):
        see, feed = f"layers.{index}.0.", f"layers.{index}.1."
        there = {"context_layer_norm": "norm_media", "latents_layer_norm": "norm_latents"}
        renamed |= {
            f"blocks.{index}.0.{a}.{n}": state[f"{see}{b}.{n}"] for a, b in there.items() for n in ("weight", "bias")
        }
        keys, values = state[f"{see}to_kv.weight"].split(inner)
        there = {"q_proj": state[f"{see}to_q.weight"], "k_proj": keys, "v_proj": values}
        there["output_proj"] = state[f"{see}to_out.weight"]
        renamed |= {f"blocks.{index}.0.{a}.weight": tensor for a, tensor in there.items()}
        renamed |= {f"blocks.{index}.1.ln.{n}": state[f"{feed}0.{n}"] for n in ("weight", "bias")}
        renamed |= {f"blocks.{index}.1.fc.weight": state[f"{feed}1.weight"]}
        renamed |= {f"blocks.{index}.1.c_proj.weight": state[f"{feed}3.weight"]}
    upstream.load_state_dict(renamed)
    for block in upstream.blocks:
        block[1].act = nn.GELU()
    return upstream.eval()(projector.linear(rows))


def queried(config: qformer.Config, state: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """By BLIP-2's Q-Former; `state` is the checkpoint's, whose queries are not normalised yet."""
    upstream = Blip2QFormerModel(
        Blip2QFormerConfig(
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.inner,
            encoder_hidden_size=config.inputs,
            cross_attention_frequency=2,
            layer_norm_eps=qformer.EPS,
        )
    )
    there = {
        name.removeprefix("bert.").replace("attention.self.", "attention.attention."): tensor
        for name, tensor in state.items()
        if name.startswith("bert.")
    }
    missing, more = upstream.load_state_dict(there, strict=False)
    assert not more
    assert sorted(missing) == ["layernorm.bias", "layernorm.weight"]  # 0 and 1: TinyLLaVA-Factory takes them out
    queries = state["query_tokens"].expand(len(rows), -1, -1)
    seen = upstream.eval()(query_embeds=queries, encoder_hidden_states=rows).last_hidden_state
    return nn.functional.linear(seen, state["projector.weight"], state["projector.bias"])


@torch.inference_mode()
@pytest.mark.parametrize("inputs", [32, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_upstream(kind, inputs):
    module, config = find(kind)[0], replace(KINDS[kind], inputs=inputs)
    torch.manual_seed(1)
    projector = randomized(module.Projector(config)).eval()
    rows = torch.randn(2, 16, inputs)
    state = {name: tensor.clone() for name, tensor in projector.state_dict().items()}
    if kind == "resampler":
        expected = resampled(projector, rows)
    else:
        expected = queried(config, state, rows)
        made = module.transforms(config)["query_tokens"]
        assert made.shape((1, 9, 48)) == (1, 9, 48)
        projector.load_state_dict(state | {"query_tokens": made(state["query_tokens"])})
    got = projector(rows)
    assert got.shape == (2, module.tokens(config), 64)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def checkpoint(root, kind, projector, state=None, **said):
    """TinyLLaVA-Factory's, with this projector."""
    kin = as_factory(saved("Bunny, Qwen1.5", root), connector_type=kind, **said)
    path = kin.folder / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("connector.")}
    own = {f"connector._connector.{name}": tensor for name, tensor in (state or projector.state_dict()).items()}
    save_file(kept | own, path)
    return kin


def test_a_bundle_with_a_resampler_sees_as_its_own_code(tmp_path):
    projector = randomized(resampler.Projector(KINDS["resampler"])).eval()
    kin = checkpoint(tmp_path, "resampler", projector, num_queries=9, num_resampler_layers=2)
    request = ExportRequest(str(kin.folder), tmp_path / "out", schemes=("fp32",), threads=1)
    done = export(request, lambda *_: None)
    assert done.report.ok
    values = torch.randn(1, 3, VISION["image_size"], VISION["image_size"], generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        rows = kin.tower(values, output_hidden_states=True).hidden_states[-2][:, 1:]
        expected = resampled(projector, rows)[0].numpy()
    with load(done.path, threads=1) as session:
        np.testing.assert_allclose(session.encode_pixels(values.numpy()).rows, expected, atol=2e-4)


@torch.inference_mode()
def test_the_queries_of_a_qformer_are_normalised_as_they_are_read(monkeypatch, tmp_path):
    monkeypatch.setattr(qformer, "Config", Small)
    small = KINDS["qformer"]
    torch.manual_seed(5)
    state = randomized(qformer.Projector(small)).state_dict()
    found = open_checkpoint(str(checkpoint(tmp_path, "qformer", None, state, num_queries=9).folder))
    assert found.spec.prompt.image_tokens == 9
    rows = torch.randn(1, 15, 32)
    got = found.components["projector"].load(found.weights)(rows)
    torch.testing.assert_close(got, queried(small, state, rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("queries", [None, 0, -1, "9", 9.0, True, 10**6])
def test_a_number_of_queries_that_cannot_be_is_refused_by_name(kind, queries):
    with pytest.raises(CheckpointError, match="num_queries"):
        find(kind)[0].from_config(SHAPE, {"num_queries": queries, "num_resampler_layers": 2})


def test_layers_that_the_weights_do_not_have_are_missed(tmp_path):
    projector = randomized(resampler.Projector(KINDS["resampler"]))
    folder = checkpoint(tmp_path, "resampler", projector, num_queries=9, num_resampler_layers=3).folder
    with pytest.raises(CheckpointError, match=r"missing: connector\._connector\.layers\.2\.0"):
        open_checkpoint(str(folder))
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"num_resampler_layers": 1}))
    with pytest.raises(CheckpointError, match=r"layers\.1\.0"):
        open_checkpoint(str(folder))
