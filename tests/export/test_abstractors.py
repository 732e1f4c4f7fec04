"""C- and D-Abstractor, MiniGPT's and InternVL's projectors: their rows are those of the published definitions, written
anew here, or of transformers' own classes; and how their settings are read."""

from __future__ import annotations

from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from small_models import randomized
from test_newcomers import PROJECTOR, checkpoint
from torch.nn import functional as F
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrDecoderLayer
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector

from edge.errors import CheckpointError
from exporters.models import projectors
from exporters.models.projectors import (
    ProjectorConfig,
    c_abstractor,
    d_abstractor,
    minigpt,
    pixel_shuffle_mlp,
)
from exporters.sources.checkpoint import open_checkpoint
from exporters.sources.checkpoint_folder import projector_component

SHAPE = ProjectorConfig(inputs=32, hidden=64, grid=6)
WITH_CLASS = replace(SHAPE, cls=True)


def made(module, config, seed=1):
    torch.manual_seed(seed)
    return randomized(module.Projector(config)).eval()


class State(dict):
    def __init__(self, state, prefix):
        super().__init__({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})

    def under(self, prefix):
        return State(self, f"{prefix}.")


# C-Abstractor, from section 3.2 of its paper and RegNet's: bottlenecks with squeeze and excitation


def normed(x, state):
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2], state["weight"], state["bias"], 1e-5).movedim(-1, 1)


def bottleneck(x, state):
    def convolved(x, name, **how):
        own = state.under(name)
        return normed(F.conv2d(x, own["conv.weight"], **how), own.under("bn"))

    y = F.silu(convolved(x, "conv1"))
    y = F.silu(convolved(y, "conv2", padding=1, groups=y.shape[1]))
    squeezed = F.silu(F.conv2d(y.mean((2, 3), keepdim=True), state["se.fc1.weight"], state["se.fc1.bias"]))
    y = y * torch.sigmoid(F.conv2d(squeezed, state["se.fc2.weight"], state["se.fc2.bias"]))
    y = convolved(y, "conv3")
    return F.silu(y + (convolved(x, "downsample") if state.under("downsample") else x))


def abstracted(state, rows, config):
    if "prenorm.weight" in state:
        rows = F.layer_norm(rows, rows.shape[-1:], state["prenorm.weight"], state["prenorm.bias"], 1e-6)
    rows = (rows + state["pos_emb"] if "pos_emb" in state else rows)[:, int(config.cls) :]
    x = rows.mT.unflatten(2, (config.grid, config.grid))
    for index in range(config.blocks):
        x = bottleneck(x, state.under(f"net.0.b{index + 1}"))
    x = F.adaptive_avg_pool2d(x, round(config.queries**0.5))
    for index in range(config.blocks):
        x = bottleneck(x, state.under(f"net.2.b{index + 1}"))
    x = x.flatten(2).mT
    for index in range(config.depth):
        x = F.silu(x) if index else x
        x = F.linear(x, state[f"readout.{2 * index}.weight"], state[f"readout.{2 * index}.bias"])
    return torch.cat([x, state["eos_tokens"].expand(len(x), -1, -1)], 1) if "eos_tokens" in state else x


C_ABS = {
    "published": c_abstractor.Config(**asdict(SHAPE) | {"depth": 2}, blocks=3, width=48, queries=9),
    "a class token, ends, a norm": c_abstractor.Config(
        **asdict(WITH_CLASS) | {"depth": 1}, blocks=1, width=32, queries=16, ends=2, positions=True, prenorm=True
    ),
    "a pool alone": c_abstractor.Config(**asdict(SHAPE) | {"depth": 3}, blocks=0, queries=4, positions=False),
}


@torch.inference_mode()
@pytest.mark.parametrize("case", C_ABS)
def test_a_c_abstractor_is_the_published_one(case):
    config = C_ABS[case]
    projector = made(c_abstractor, config)
    rows = torch.randn(2, config.rows, config.inputs)
    got = projector(rows)
    assert got.shape == (2, c_abstractor.tokens(config), 64)
    expected = abstracted(State(projector.state_dict(), ""), rows, config)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


# D-Abstractor: decoder layers of Deformable DETR as transformers has them, put together as Honeybee's code does


def deformed(state, rows, config):
    c = config
    rows = rows[:, int(c.cls) :]
    if "input_proj.0.weight" in state:
        rows = F.linear(rows, state["input_proj.0.weight"], state["input_proj.0.bias"])
    rows = rows + state["v_pos_emb"] if "v_pos_emb" in state else rows
    side = round(c.queries**0.5)
    pooled = F.adaptive_avg_pool2d(rows.mT.unflatten(2, (c.grid, c.grid)), side).flatten(2).mT
    learned = state["query_position_embeddings.weight"].expand(len(rows), -1, -1)
    places, queries = {
        "query": lambda: (pooled, learned),
        "tgt": lambda: (learned, pooled),
        "none": lambda: learned.chunk(2, dim=-1),
    }[c.pooled]()
    told = DeformableDetrConfig(
        d_model=c.width,
        decoder_attention_heads=c.heads,
        decoder_n_points=c.points,
        decoder_ffn_dim=c.inner,
        activation_function=c.activation,
        num_feature_levels=1,
        disable_custom_kernels=True,
        attn_implementation="eager",
    )
    for index in range(c.layers):
        layer = DeformableDetrDecoderLayer(told).eval()
        own = State(state, f"layers.{index}.")
        there = {"self_attn.out_proj": "self_attn.o_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
        renamed = {}
        for name, tensor in own.items():
            place, _, kind = name.rpartition(".")
            renamed[f"{there.get(place, place)}.{kind}"] = tensor
        layer.load_state_dict(renamed)
        queries = layer(
            queries,
            object_queries_position_embeddings=places,
            reference_points=state["reference_points"].expand(len(rows), -1, -1)[:, :, None],
            spatial_shapes=torch.tensor([[c.grid, c.grid]]),
            spatial_shapes_list=[(c.grid, c.grid)],
            level_start_index=torch.tensor([0]),
            encoder_hidden_states=rows,
        )
    if "eos_tokens" in state:
        queries = torch.cat([queries, state["eos_tokens"].expand(len(rows), -1, -1)], dim=1)
    if "output_proj.weight" in state:
        return F.linear(queries, state["output_proj.weight"], state["output_proj.bias"])
    return queries


D_ABS = {
    "published": d_abstractor.Config(**asdict(SHAPE), width=48, layers=2, heads=4, points=4, inner=96, queries=9),
    "a class token, ends, pooled queries": d_abstractor.Config(
        **asdict(WITH_CLASS), width=32, layers=1, heads=2, points=3, inner=40, queries=16, ends=2, pooled="tgt"
    ),
    "nothing pooled, of the decoder's width": d_abstractor.Config(
        **asdict(SHAPE), width=64, layers=1, heads=8, points=1, inner=40, queries=4, positions=False, pooled="none"
    ),
}


@torch.inference_mode()
@pytest.mark.parametrize("case", D_ABS)
def test_a_d_abstractor_is_the_published_one(case):
    """Its points lie anywhere: some beyond the grid, where there are zeros."""
    config = D_ABS[case]
    skeleton = made(d_abstractor, config).state_dict()
    state = State({name: tensor.clone() for name, tensor in skeleton.items()}, "")
    state["reference_points"] = torch.rand(1, config.queries, 2) * 1.4 - 0.2
    for index in range(config.layers):
        name = f"layers.{index}.encoder_attn.sampling_offsets.weight"
        state[name] = torch.randn(state[name].shape) * 0.3
    rows = torch.randn(2, config.rows, config.inputs)
    component = projector_component(d_abstractor, config, lambda name: name)
    projector = component.load(Shaped(state)).eval()
    got = projector(rows)
    assert got.shape == (2, d_abstractor.tokens(config), 64)
    torch.testing.assert_close(got, deformed(state, rows, config), rtol=1e-4, atol=2e-5)


@torch.inference_mode()
def test_a_checkpoint_with_a_d_abstractor_is_read(tmp_path):
    said = {"projector_type": "d-abs", "d_model": 48, "decoder_layers": 1, "decoder_attention_heads": 4}
    said |= {"decoder_n_points": 2, "decoder_ffn_dim": 40, "num_queries": 9, "encoder_hidden_size": 64}
    config = d_abstractor.from_config(ProjectorConfig(inputs=64, hidden=64, grid=24), {"projector_config": said})
    state = State(made(d_abstractor, config).state_dict(), "")
    state["reference_points"] = torch.rand(1, 9, 2)
    tensors = {PROJECTOR + name: tensor.contiguous() for name, tensor in state.items()}
    folder = checkpoint(tmp_path, PROJECTOR, tensors, mm_projector_type="d-abs", projector_config=said)
    found = open_checkpoint(folder)
    rows = torch.randn(1, 576, 64)
    got = found.components["projector"].load(found.weights)(rows)
    assert found.spec.prompt.image_tokens == got.shape[1] == 9
    torch.testing.assert_close(got, deformed(state, rows, config), rtol=1e-4, atol=2e-5)


class Shaped(dict):
    def shape(self, name):
        return tuple(self[name].shape)


@torch.inference_mode()
@pytest.mark.parametrize(
    "config", [SHAPE, replace(SHAPE, grid=5, skipped=1), replace(SHAPE, grid=3, hidden=8, cls=False, skipped=1)]
)
def test_minigpt_joins_four_neighbours_of_the_sequence(config):
    projector = made(minigpt, config)
    rows = torch.randn(2, config.rows, config.inputs)
    weight, bias = projector.linear.weight, projector.linear.bias
    expected = sum(rows[:, i::4] @ weight[:, i * 32 : (i + 1) * 32].T for i in range(4)) + bias
    assert minigpt.tokens(config) == expected.shape[1]
    torch.testing.assert_close(projector(rows), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [replace(SHAPE, grid=5), WITH_CLASS])
def test_minigpt_refuses_rows_that_four_do_not_divide(config):
    with pytest.raises(CheckpointError, match=f"joins 4 embeddings each, and the vision encoder gives {config.rows}"):
        minigpt.Projector(config)


@torch.inference_mode()
@pytest.mark.parametrize("shape", [replace(SHAPE, grid=8), replace(WITH_CLASS, grid=8)])
@pytest.mark.parametrize(("ratio", "act"), [(0.5, "gelu"), (0.25, "gelu_pytorch_tanh")])
def test_internvl_s_is_transformers(shape, ratio, act):
    config = pixel_shuffle_mlp.from_config(shape, {"downsample_ratio": ratio, "projector_hidden_act": act})
    projector = made(pixel_shuffle_mlp, config)
    told = SimpleNamespace(
        vision_config=SimpleNamespace(hidden_size=32),
        text_config=SimpleNamespace(hidden_size=64),
        downsample_ratio=ratio,
        projector_hidden_act=act,
    )
    upstream = InternVLMultiModalProjector(told)
    upstream.load_state_dict(projector.state_dict())
    rows = torch.randn(2, shape.rows, 32)
    square = rows[:, int(shape.cls) :].reshape(2, 8, 8, 32)
    shuffled = InternVLModel.pixel_shuffle(None, square, 1 / round(1 / ratio)).reshape(
        2, -1, 32 * round(1 / ratio) ** 2
    )
    got = projector(rows)
    assert got.shape[1] == pixel_shuffle_mlp.tokens(config)
    torch.testing.assert_close(got, upstream(shuffled), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "said", "match"),
    [
        ("c-abs", {"num_queries": 143}, "num_queries 143"),
        ("c-abs", {"num_queries": 0}, "num_queries 0"),
        ("c-abs", {"hidden_size": "wide"}, "hidden_size 'wide'"),
        ("c-abs", {"hidden_size": 1 << 40}, "hidden_size"),
        ("c-abs", {"pos_emb": 1}, "pos_emb 1"),
        ("c-abs", {"encoder_hidden_size": 33}, "encoder_hidden_size 33"),
        ("c-abs", {"output_hidden_size": 65}, "output_hidden_size 65"),
        ("c-abs", {"isotropic": True}, "isotropic True in projector_config"),
        ("d-abs", {"num_feature_levels": 2}, "num_feature_levels 2"),
        ("d-abs", {"pooled_v_target": "all"}, "pooled_v_target 'all'"),
        ("d-abs", {"activation_function": "mish"}, "activation_function 'mish'"),
        ("d-abs", {"except_cls": False}, "except_cls false"),
        ("d-abs", {"decoder_attention_heads": 7}, "decoder_attention_heads 7"),
        ("d-abs", {"num_queries": 10}, "num_queries 10"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(kind, said, match):
    module, _ = projectors.find(kind)
    with pytest.raises(CheckpointError, match=match):
        projectors.configure(module, SHAPE, {"projector_config": said})


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"downsample_ratio": 0.25}, "downsample_ratio is 0.25"),
        ({"downsample_ratio": 0.4}, "downsample_ratio is 0.4"),
        ({"downsample_ratio": "half"}, "downsample_ratio is 'half'"),
        ({"projector_hidden_act": "mish"}, "projector_hidden_act 'mish'"),
    ],
)
def test_internvl_s_settings_are_refused_by_name(said, match):
    with pytest.raises(CheckpointError, match=match):
        pixel_shuffle_mlp.from_config(SHAPE, said)


def test_what_is_no_object_is_no_config():
    with pytest.raises(CheckpointError, match="projector_config 'c-abs'"):
        c_abstractor.from_config(SHAPE, {"projector_config": "c-abs"})
