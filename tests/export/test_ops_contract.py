"""Every operation of `exporters.models.ops` in every format, run by the format's engine, against torch.

A component here calls one operation, at several shapes. GGUF is left out: such a file holds weights only, and llama.cpp
brings the graph itself, so no operation of ours is ever lowered there; it refuses a decoder whose graph is another.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SPEC
from small_models import logits_after, randomized, spec_of, write
from torch import nn

from edge.decoders.kv_graph import kv_decoder
from edge.engines import open_part
from edge.errors import EdgeError
from edge.spec import VLMSpec
from edge.types import OpenOptions, PartFiles, Tokens
from edge.verify import distance
from exporters.evaluators import mil
from exporters.formats import coreml, executorch, gguf, onnx, tflite
from exporters.models import ops
from exporters.models.attention import Rope
from exporters.models.component import Component
from exporters.models.decoders import LanguageModel, llama
from exporters.models.encoder import Encoder
from exporters.models.layers import Activation, Conv2d, LayerNorm, Linear, RMSNorm

SIDE = 16  # of the images that the modules are given: as rows, 48 of them of 16
OPTIONS = OpenOptions(threads=1, context=256)
TOLERANCE = {"cosine": 0.99999, "max_abs": 2e-3}  # Core ML stores half precision, and its reference what was stored
# A half has 11 bits: an operation is off by 2^-11 of its largest numbers, and a few in a row by a few of that.
HALVES = {"cosine": 0.9999, "max_abs": 0.05}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


# Modules of one operation each: pixels [1, 3, SIDE, SIDE] -> a list of results.


class Case(nn.Module):
    def __init__(self, **layers):
        super().__init__()
        self.config = SimpleNamespace(image_size=SIDE)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def results(self, image, rows):
        raise NotImplementedError

    def forward(self, pixels):
        first, *others = (r.reshape(1, -1, 1) for r in self.results(pixels, pixels.reshape(1, 3 * SIDE, SIDE)))
        for other in others:
            first = torch.cat([first, other], dim=1)
        return first


class LinearCase(Case):
    def __init__(self):
        super().__init__(wide=Linear(SIDE, 40), bare=Linear(SIDE, 12, bias=False), one=Linear(40, 12))

    def results(self, image, rows):
        return [self.bare(rows), self.one(self.wide(rows[:, :1])), self.wide(rows)]


class NormCase(Case):
    def __init__(self, norm):
        super().__init__(widen=Linear(SIDE, 72), narrow=norm(SIDE, 1e-5), wide=norm(72, 1e-6))

    def results(self, image, rows):
        return [self.narrow(rows), self.narrow(rows[:, :1] * 20.0), self.wide(self.widen(rows))]


class AddNormCase(NormCase):
    def results(self, image, rows):
        normed, total = self.wide.add(self.widen(rows), self.widen(rows * 0.5))
        return [normed, total, *self.narrow.add(rows, self.narrow(rows))]


class ActivationCase(Case):
    """Of every kind: three results for each, in their order."""

    def __init__(self):
        super().__init__(acts=nn.ModuleList(map(Activation, ops.ACTIVATIONS)))

    def results(self, image, rows):
        return [act(x) for act in self.acts for x in (image, rows * 4.0, rows[:, :1])]


class GatedCase(Case):
    """Of every kind: three results for each, in their order."""

    def __init__(self):
        super().__init__(up=Linear(SIDE, 48), narrow=Linear(SIDE, 10, bias=False))

    def results(self, image, rows):
        gated = ops.current().gated
        given = (self.up(rows), rows, self.narrow(rows[:, :1]))
        return [gated(x, kind) for kind in ops.ACTIVATIONS for x in given]


class AttentionCase(Case):
    def __init__(self):
        super().__init__(q=Linear(SIDE, 32), k=Linear(SIDE, 32), v=Linear(SIDE, 32))

    def results(self, image, rows):
        """As many keys as queries, fewer, more, a single one of either; one head, and several."""
        q, k, v = self.q(rows), self.k(rows), self.v(rows)
        attend = ops.current().attention
        return [
            attend(q, k, v, 2),
            attend(q, k[:, :7], v[:, :7], 4),
            attend(q[:, :5], k, v, 1),
            attend(q[:, :1], k, v, 4),
            attend(q, k[:, :1], v[:, :1], 2),
        ]


def signs(x):
    """1 where a number is positive, and 0 where it is not."""
    steep = ops.current().activation
    return steep(steep(x * 1e3, "hardsigmoid") * 1e4 + -5e3, "hardsigmoid")


class EmptyAttentionCase(AttentionCase):
    """Of keys some are not seen, as a number of the input says."""

    def results(self, image, rows):
        q, k, v = self.q(rows), self.k(rows), self.v(rows)
        empty = signs(rows[:, :, :1]).reshape(1, -1)
        attend = ops.current().attention
        return [attend(q, k, v, 2, empty), attend(q[:, :5], k[:, :20], v[:, :20], 4, empty[:, :20])]


class LookupCase(Case):
    """By the input's signs: in a row, and in a table of rows and columns."""

    def __init__(self):
        super().__init__()
        self.line, self.table = nn.Parameter(torch.randn(12, 2)), nn.Parameter(torch.randn(20, 6))

    def results(self, image, rows):
        found, look = signs(rows), ops.current().lookup
        row, column = found[:, :, :1], found[:, :, 1:2] + found[:, :, 2:3]
        return [look(self.line, row), look(self.table, torch.cat([row, column], dim=2), 3)]


class SoftCapCase(Case):
    def results(self, image, rows):
        cap = ops.current().soft_cap
        return [cap(image, 0.5), cap(rows * 6.0, 4.0), cap(rows[:, :1], 2.0)]


class DeformableAttentionCase(Case):
    """Points within the grid and beyond it; two heads of two points, and one of one."""

    def __init__(self):
        super().__init__(values=Linear(SIDE, 24), off=Linear(SIDE, 8), scores=Linear(SIDE, 4))
        self.places = nn.Parameter(torch.linspace(-1.5, 1.5, 18).view(1, 18, 1, 1) + torch.arange(4.0).flip(0))

    def results(self, image, rows):
        attend = ops.current().deformable_attention
        values, queries = self.values(rows[:, :16]), rows[:, 16:25]
        off = self.off(queries * 2.0).reshape(1, 18, 4, 1) + self.places
        scores = self.scores(queries)
        one = off[:, :, :1]
        return [
            attend(values, off.reshape(1, 9, 8, 4), scores, 2),
            attend(values, one.reshape(1, 9, 2, 4), scores[:, :, :1], 1),
        ]


class Conv2dCase(Case):
    def __init__(self):
        super().__init__(
            patches=Conv2d(3, 8, 4, stride=4, bias=False),
            edges=Conv2d(3, 6, 3, padding=1),
            depthwise=Conv2d(6, 6, 3, stride=2, padding=1, groups=6),
            several=Conv2d(3, 12, 3, padding=2, groups=3),
            pixelwise=Conv2d(6, 5, 1),
        )

    def results(self, image, rows):
        edges = self.edges(image)
        return [
            self.patches(image),
            edges,
            self.depthwise(edges),
            self.several(image),
            self.pixelwise(edges),
            self.patches(image).flatten(2).transpose(1, 2),
        ]


class GroupsCase(Case):
    """Neither all channels together nor each alone."""

    def __init__(self):
        super().__init__(spread=Conv2d(3, 8, 1), groups=Conv2d(8, 12, 3, padding=1, groups=4))

    def results(self, image, rows):
        return [self.groups(self.spread(image))]


class PoolCase(Case):
    def results(self, image, rows):
        pool = ops.current().pool
        return [pool(image, size) for size in (1, 2, 8, SIDE)]


ENCODERS = {
    "linear": LinearCase,
    "layer_norm": lambda: NormCase(LayerNorm),
    "add_layer_norm": lambda: AddNormCase(LayerNorm),
    "rms_norm": lambda: NormCase(RMSNorm),
    "add_rms_norm": lambda: AddNormCase(RMSNorm),
    "activation": ActivationCase,
    "gated": GatedCase,
    "attention": AttentionCase,
    "attention of empty keys": EmptyAttentionCase,
    "lookup": LookupCase,
    "soft_cap": SoftCapCase,
    "deformable_attention": DeformableAttentionCase,
    "conv2d": Conv2dCase,
    "conv2d in groups": GroupsCase,
    "pool": PoolCase,
}


OF_DECODERS = {"head_norms"}  # of what `attend` takes only: the families that have it are in test_decoder_formats.py


def test_every_kind_of_activation_is_in_a_decoder_of_every_format():
    refused = {case for _, case in REFUSED}
    assert {kind for case in DECODERS.keys() - refused for kind in DECODERS[case][1:]} == set(ops.ACTIVATIONS)


def test_every_operation_has_a_case():
    listed = {name for name, _ in inspect.getmembers(ops.Ops, inspect.isfunction) if not name.startswith("_")}
    assert listed == {name.split()[0] for name in ENCODERS} | OF_DECODERS


# Decoders: lengths that vary, and rotary positions.


@dataclass(frozen=True)
class Config(llama.Config):
    __module__ = llama.Config.__module__  # of Llama's family
    rotary_dim: int = 0

    @property
    def rope(self):
        return Rope(self.head_dim, self.rope_theta, self.rope_scaling, self.rotary_dim)


class OneLayer(LanguageModel):
    """Of every kind of activation that is named, one after another: alone, and gated."""

    def __init__(self, config, *kinds):
        super().__init__(config)
        c, self.kinds = config, kinds
        self.qkv = Linear(c.hidden, (c.heads + 2 * c.kv_heads) * c.head_dim)
        self.o = Linear(c.heads * c.head_dim, c.hidden)
        self.norm = (RMSNorm if c.rotary_dim else LayerNorm)(c.hidden, c.eps)
        self.up, self.down = Linear(c.hidden, 2 * c.ffn), Linear(c.ffn, c.hidden)
        self.acts, self.back = nn.ModuleList(map(Activation, kinds)), Linear(2 * c.ffn, c.hidden)
        self.lm_head = Linear(c.hidden, c.vocab, bias=False)

    def forward(self, inputs_embeds, attend, everywhere=False):
        normed, x = self.norm.add(inputs_embeds, self.o(attend(0, self.qkv(inputs_embeds))))
        for kind, act in zip(self.kinds, self.acts, strict=True):
            x = x + self.down(ops.current().gated(self.up(normed), kind))
            x = x + self.back(act(self.up(self.norm(x))))
        return self.lm_head(x if everywhere else x[:, -1:])


CONFIG = Config(layers=1, hidden=48, ffn=40, heads=4, kv_heads=2, head_dim=16, vocab=96, context=40)
# Two are for every format, and have each kind of activation between them.
DECODERS = {
    "rope": (replace(CONFIG, kv_heads=1), "silu", "relu", "hardswish", "hardsigmoid", "sigmoid"),
    "rope of 16 features": (replace(CONFIG, head_dim=32, rotary_dim=16), "gelu", "gelu_tanh", "quick_gelu"),
    "rope of 8 features": (replace(CONFIG, rotary_dim=8), "gelu_tanh"),
    "rope of 4 features": (replace(CONFIG, rotary_dim=4, kv_heads=4), "gelu"),
}
SKIPPED = {("executorch", "rope of 4 features")}  # seconds each, and it is that of 8 again
REFUSED = {("onnx", "rope of 8 features"): "rope of 8", ("onnx", "rope of 4 features"): "rope of 4"}


# A format is written to by its writer, and opened by its engine.


def checkpoint(tokens=4, decoder=None):
    prompt = replace(SPEC.prompt, image_tokens=tokens)
    spec = VLMSpec(replace(SPEC.image, size=SIDE), prompt, decoder or SPEC.decoder, None)
    tokenizer = json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": []})
    return SimpleNamespace(name="tiny", license="cc0-1.0", sha256="0" * 64, spec=spec, tokenizer_json=lambda: tokenizer)


FORMATS = {
    "onnx": (onnx, "fp32", {}, "onnxruntime"),
    "onnx, halves": (onnx, "w16a16", {}, "onnxruntime"),
    "tflite": (tflite, "fp32", {}, "litert"),
    "executorch": (executorch, "fp32", {}, "executorch"),
    "coreml": (coreml, "fp16", {}, "mil"),
    "coreml, channels first": (coreml, "fp16", {"ane": True}, "mil"),
}
REFUSED |= {("onnx, halves", case): said for (name, case), said in REFUSED.items() if name == "onnx"}
each_format = pytest.mark.parametrize("name", FORMATS)


def written(name, component, module, source, folder, covers, decoder=None):
    format, scheme, options, engine = FORMATS[name]
    made = write(format, component, module, scheme, folder, checkpoint=source, options=options)
    part = PartFiles(name.split(",")[0], scheme, covers, made.files, made.inputs, made.outputs, decoder)
    return part, mil.evaluate(part, OPTIONS, "fp32") if engine == "mil" else open_part(part, engine, OPTIONS)


def within(name, error):
    bounds = HALVES if name == "onnx, halves" else TOLERANCE
    return error["cosine"] >= bounds["cosine"] and error["max_abs"] <= bounds["max_abs"]


def export_encoder(name, make, folder):
    def build():
        torch.manual_seed(2)  # what layers begin with is drawn, too
        return Encoder(make(), nn.Identity())

    module = randomized(build())
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(8))
    with torch.inference_mode():
        results = module.tower.results(pixels, pixels.reshape(1, 3 * SIDE, SIDE))
        expected = module(pixels).numpy()
    source = checkpoint(expected.shape[1], spec_of(replace(CONFIG, hidden=1)))
    _, graph = written(name, Component("vision", build, {}), module, source, folder, ("vision", "projector"))
    found = graph.run({"pixel_values": pixels.numpy()})["image_embeds"]
    assert found.shape == expected.shape
    ends = np.cumsum([result.numel() for result in results])
    assert ends[-1] == expected.size
    return zip(np.split(found, ends[:-1], axis=1), np.split(expected, ends[:-1], axis=1), strict=True)


@each_format
@pytest.mark.parametrize("case", ENCODERS)
def test_an_operation_computes_what_torch_does(case, name, tmp_path):
    for number, (found, expected) in enumerate(export_encoder(name, ENCODERS[case], tmp_path)):
        assert expected.size == 3 or expected.std() > 0.01  # a mean of each channel is small
        error = distance(found, expected)
        assert within(name, error), (number, error)


def export_decoder(name, config, kinds, folder):
    module, spec = randomized(OneLayer(config, *kinds)), spec_of(config)
    component = Component("decoder", lambda: OneLayer(config, *kinds), {})
    part, decoder = written(name, component, module, checkpoint(decoder=spec), folder, ("decoder",), spec)
    return module, kv_decoder(decoder, part, spec, config.context) if name.startswith("onnx") else decoder


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name in FORMATS for case in DECODERS if (name, case) not in SKIPPED]
)
def test_a_decoder_of_them_computes_what_torch_does(case, name, tmp_path):
    config, *kinds = DECODERS[case]
    if (name, case) in REFUSED:
        with pytest.raises(EdgeError, match=REFUSED[name, case]) as refused:
            export_decoder(name, config, kinds, tmp_path)
        assert "--format" in refused.value.hint
        return
    module, decoder = export_decoder(name, config, kinds, tmp_path)
    ids = tuple(np.random.default_rng(3).integers(0, config.vocab, 12).tolist())
    rows = module.embed_tokens.weight[list(ids)][None]
    expected = logits_after(module, [rows[:, :9], *rows[:, 9:].split(1, dim=1)])
    found = [decoder.extend([Tokens(ids[:9])]).copy(), *(decoder.extend([Tokens((i,))]).copy() for i in ids[9:])]
    for have, want in zip(found, expected, strict=True):
        error = distance(have, want)
        assert within(name, error), error


PARTIAL = replace(CONFIG, rotary_dim=8)


class PartlyRotated(llama.Decoder):
    """A Llama but for its rope."""

    def __init__(self):
        super().__init__(PARTIAL)


@pytest.mark.parametrize(
    ("build", "named"),
    [(lambda: OneLayer(CONFIG, "silu"), "no graph of llama.cpp known for OneLayer"), (PartlyRotated, "rope of 8")],
)
def test_gguf_refuses_a_decoder_that_llama_cpp_would_compute_otherwise(build, named, tmp_path):
    with pytest.raises(EdgeError, match=named) as refused:
        write(gguf, Component("decoder", build, {}), build(), "f16", tmp_path, checkpoint=checkpoint())
    assert "--format" in refused.value.hint


# What is no operation is refused by name, with a way out; ExecuTorch has kernels for most of what torch has.


class Foreign(Case):
    def results(self, image, rows):
        return [torch.special.i0e(rows), rows]


class Unknown(Case):
    def results(self, image, rows):
        return [ops.current().activation(rows, "mish"), rows]


@pytest.mark.parametrize(
    ("name", "make", "named"),
    [
        *((name, Unknown, "mish") for name in FORMATS),
        *((name, Foreign, "i0e") for name in FORMATS if name != "executorch"),
    ],
)
def test_what_is_no_operation_is_refused_by_name(name, make, named, tmp_path):
    component = Component("vision", lambda: Encoder(make(), nn.Identity()), {})
    with pytest.raises(EdgeError, match=named) as refused:
        written(name, component, component.build(), checkpoint(48), tmp_path, ("vision", "projector"))
    assert refused.value.hint
