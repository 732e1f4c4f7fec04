"""Written ONNX parts against torch on the weights that they hold, run by the engine as a session would."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_models import logits_after, randomized, small_projector, spec_of, write

from edge import plugins
from edge.decoders.kv_graph import kv_decoder
from edge.engines import open_part
from edge.types import Embeddings, OpenOptions, PartFiles, Tokens
from edge.verify import distance
from exporters.formats import onnx
from exporters.models.component import Component
from exporters.models.decoders import llama
from exporters.models.encoder import Encoder
from exporters.models.vision import clip

OPTIONS = OpenOptions(threads=1, context=64)


def part_of(written, scheme, *covers):
    return PartFiles("onnx", scheme, covers, written.files, written.inputs, written.outputs)


def written_decoder(config, scheme, folder):
    module = randomized(llama.Decoder(config))
    component = Component("decoder", lambda: llama.Decoder(config), {})
    part = part_of(write(onnx, component, module, scheme, folder, lambda done: None), scheme, "decoder")
    return module, kv_decoder(open_part(part, "onnxruntime", OPTIONS), part, spec_of(config), config.context)


def reference(module, rows):
    return logits_after(module, [rows])[0]


def assert_within(found, expected, tolerance):
    error = distance(found, expected)
    assert error["cosine"] >= tolerance["cosine"], error
    assert error["max_abs"] <= tolerance.get("max_abs", np.inf), error


TINY = llama.tiny().config
CONFIGS = {
    "gqa": TINY,
    "mha, wide vocabulary": dataclasses.replace(TINY, kv_heads=4, vocab=1000),
    "biases": dataclasses.replace(TINY, attention_bias=True, mlp_bias=True),
    "widths that no block divides": dataclasses.replace(TINY, hidden=72, ffn=100, heads=3, kv_heads=1, head_dim=16),
    "theta and scaling": dataclasses.replace(
        TINY, rope_theta=50000.0, rope_scaling={"rope_type": "linear", "factor": 2.0}
    ),
}


# One decoder in every scheme; of the others those that the scheme's code treats otherwise.
DECODERS = [
    *(("gqa", scheme) for scheme in onnx.SCHEMES["decoder"]),
    *(("widths that no block divides", scheme) for scheme in ("fp32", "w8", "w4")),
    ("widths that no block divides", "w4a16"),
    ("biases", "w4a16"),
    *(("mha, wide vocabulary", scheme) for scheme in ("fp16", "w4")),
    ("biases", "w8"),
    ("biases", "w4"),
    ("theta and scaling", "fp32"),
]


@pytest.mark.parametrize(("config", "scheme"), DECODERS)
def test_decoder_computes_its_reference(config, scheme, tmp_path):
    config = CONFIGS[config]
    module, decoder = written_decoder(config, scheme, tmp_path)
    rows = torch.randn(1, 5, config.hidden, generator=torch.Generator().manual_seed(6))
    tokens = (7, 3, 19)
    with torch.inference_mode():
        merged = torch.cat([module.embed_tokens(torch.tensor([tokens])), rows], dim=1)
    found = decoder.extend([Tokens(tokens), Embeddings(rows[0].numpy(), "picture")])
    assert_within(found, reference(module, merged), onnx.SCHEMES["decoder"][scheme])


@pytest.mark.parametrize("scheme", ["fp32", "w8", "w4", "w4a16"])
def test_cached_split_and_rewound_are_whole(scheme, tmp_path):
    module, decoder = written_decoder(TINY, scheme, tmp_path)
    ids = tuple(int(i) for i in np.random.default_rng(7).integers(0, TINY.vocab, 300))  # past the first allocation
    whole = decoder.extend([Tokens(ids)]).copy()
    with torch.inference_mode():
        assert_within(
            whole, reference(module, module.embed_tokens(torch.tensor([ids]))), onnx.SCHEMES["decoder"][scheme]
        )
    # int8 activations are rounded in other groups when a prompt is cut otherwise.
    tolerance = {"cosine": 0.999999, "max_abs": 1e-4} if scheme == "fp32" else {"cosine": 0.9995}
    for pieces in ([200, 100], [299, 1], [150, 1, 1, 148]):
        decoder.rewind(0)
        start = 0
        for piece in pieces:
            found = decoder.extend([Tokens(ids[start : start + piece])])
            start += piece
        assert_within(found, whole, tolerance)
    decoder.rewind(150)
    assert_within(decoder.extend([Tokens(ids[150:])]), whole, tolerance)


PROJECTORS = {
    "ldpnetv2": 144,
    "ldpnet": 144,
    "linear": 576,
    "mlp": 576,
    "pixel_shuffle": 144,
    "qformer": 9,
    "resampler": 9,
    "c_abstractor": 10,
    "d_abstractor": 10,
    "minigpt": 144,
    "pixel_shuffle_mlp": 144,
    "slice_resampler": 9,
}


ENCODERS = [
    (name, scheme)
    for name in plugins.names("exporters.models.projectors")
    for scheme in onnx.SCHEMES["vision"]
    if name == "ldpnetv2" or scheme == "w8a8"
]


@pytest.mark.parametrize(("name", "scheme"), ENCODERS)
def test_encoder_computes_its_reference(name, scheme, tmp_path):
    tower = dataclasses.replace(clip.tiny().config, image_size=336)
    projector = plugins.load("exporters.models.projectors", name)
    sizes = small_projector(projector, tower, 64)

    def build():
        return Encoder(clip.Tower(tower), projector.Projector(sizes))

    module = randomized(build())
    written = write(onnx, Component("vision", build, {}), module, scheme, tmp_path, lambda done: None)
    graph = open_part(part_of(written, scheme, "vision", "projector"), "onnxruntime", OPTIONS)
    pixels = np.random.default_rng(8).normal(size=(1, 3, 336, 336)).astype(np.float32)
    found = graph.run({"pixel_values": pixels})["image_embeds"]
    assert found.shape == (1, PROJECTORS[name], 64)
    with torch.inference_mode():
        expected = module(torch.from_numpy(pixels)).numpy()
    assert_within(found, expected, onnx.SCHEMES["vision"][scheme])


def test_a_graph_names_its_axes_as_the_lift_reads_them(tmp_path):
    config = TINY
    written = write(
        onnx,
        Component("decoder", lambda: llama.Decoder(config), {}),
        randomized(llama.Decoder(config)),
        "w4",
        tmp_path,
        lambda done: None,
    )
    shapes = {t.name: (t.dtype, t.shape) for t in written.inputs + written.outputs}
    assert shapes["inputs_embeds"] == ("float32", (1, "sequence_length", 64))
    assert shapes["attention_mask"] == ("int64", (1, "total_sequence_length"))
    assert shapes["past_key_values.1.value"] == ("float32", (1, 2, "cache_length", 16))
    assert shapes["present.1.value"] == shapes["past_key_values.1.value"]
    assert shapes["logits"] == ("float32", (1, 1, 320))
    assert len(shapes) == 3 + 4 * config.layers


def test_progress_ends_at_one(tmp_path):
    seen = []
    write(
        onnx,
        Component("decoder", lambda: llama.Decoder(TINY), {}),
        randomized(llama.Decoder(TINY)),
        "w8",
        tmp_path,
        seen.append,
    )
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
