"""Written TFLite parts against torch on the weights that they hold, run by the engine as a session would."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from small_models import logits_after, random_decoder, randomized, small_projector, spec_of, write

from edge.engines import open_part
from edge.errors import EdgeError
from edge.formats import tflite, xnnpack_cache
from edge.types import Embeddings, OpenOptions, PartFiles, Tokens
from edge.verify import distance
from exporters.formats import tflite as format
from exporters.models import projectors
from exporters.models.component import Component
from exporters.models.decoders import llama
from exporters.models.encoder import Encoder
from exporters.models.projectors import ProjectorConfig
from exporters.models.vision import clip
from exporters.quantization import integers

OPTIONS = OpenOptions(threads=1, context=600)
CONFIG = dataclasses.replace(llama.tiny().config, context=600)  # caches of 256, 512 and 600


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def written_decoder(config, scheme, folder, importance=None):
    module = random_decoder(config)
    component = Component("decoder", lambda: llama.Decoder(config), {})
    written = write(format, component, module, scheme, folder, lambda done: None, importance)
    covers, files = ("decoder",), written.files
    part = PartFiles("tflite", scheme, covers, files, written.inputs, written.outputs, spec_of(config))
    return module, part


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """fp32: what the engine adds is rounding only."""
    return written_decoder(CONFIG, "fp32", tmp_path_factory.mktemp("exact"))


def reference(module, rows):
    return logits_after(module, [rows[None]])[0]


def prompt(module, count):
    ids = tuple(np.random.default_rng(count).integers(0, module.config.vocab, count).tolist())
    return ids, module.embed_tokens.weight[list(ids)]


@pytest.mark.parametrize("scheme", list(format.SCHEMES["decoder"]))
@pytest.mark.parametrize("heads", [(4, 2), (4, 4)])
def test_a_decoder_computes_what_torch_does_on_its_weights(scheme, heads, tmp_path):
    config = dataclasses.replace(CONFIG, heads=heads[0], kv_heads=heads[1], context=300)
    module, part = written_decoder(config, scheme, tmp_path)
    decoder = open_part(part, "litert", OPTIONS)
    ids, rows = prompt(module, 50)
    tolerance = format.SCHEMES["decoder"][scheme]
    found = [decoder.extend([Tokens(ids[:40])]), *(decoder.extend([Tokens((i,))]) for i in ids[40:])]
    for end, logits in zip(range(40, 51), found, strict=True):
        error = distance(logits, reference(module, rows[:end]))
        assert error["cosine"] >= tolerance["cosine"]
        assert error["max_abs"] <= tolerance.get("max_abs", 1.0)


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 508, 509, 510, 599, 600])
def test_a_prompt_at_the_edge_of_a_call_or_a_cache(exact, count):
    module, part = exact
    decoder = open_part(part, "litert", OPTIONS)
    ids, rows = prompt(module, count)
    np.testing.assert_allclose(decoder.extend([Tokens(ids)]), reference(module, rows), atol=1e-4)


def test_the_cache_grows_and_rewinds(exact):
    module, part = exact
    decoder = open_part(part, "litert", OPTIONS)
    ids, rows = prompt(module, 560)
    decoder.extend([Tokens(ids[:250])])
    for end in range(251, 260):  # over the first cache's end, one at a time
        np.testing.assert_allclose(decoder.extend([Tokens((ids[end - 1],))]), reference(module, rows[:end]), atol=1e-4)
    decoder.extend([Tokens(ids[259:530])])  # into the third
    decoder.rewind(100)
    again = torch.cat([rows[:100], rows[300:560]])
    np.testing.assert_allclose(decoder.extend([Tokens(ids[300:560])]), reference(module, again), atol=1e-4)
    decoder.rewind(0)
    np.testing.assert_allclose(decoder.extend([Tokens(ids[:3])]), reference(module, rows[:3]), atol=1e-4)


def test_a_picture_stands_between_tokens(exact):
    module, part = exact
    decoder = open_part(part, "litert", OPTIONS)
    ids, rows = prompt(module, 30)
    picture = Embeddings(rows[10:20].numpy() * 2, "p")
    logits = decoder.extend([Tokens(ids[:10]), picture, Tokens(ids[20:])])
    np.testing.assert_allclose(logits, reference(module, torch.cat([rows[:10], 2 * rows[10:20], rows[20:]])), atol=1e-4)


EVERY = ("ldpnetv2", "ldpnet", "mlp2x_gelu", "linear", "pixel_shuffle", "resampler", "qformer")
EXACT = ("c-abs", "d-abs", "minigpt", "internvl")


@pytest.mark.parametrize(
    ("scheme", "projector"),
    [*((s, p) for p in EVERY for s in format.SCHEMES["vision"]), *(("fp32", p) for p in EXACT)],
)
def test_a_vision_part_computes_what_torch_does_on_its_weights(scheme, projector, tmp_path):
    found, _ = projectors.find(projector)
    tower = clip.TowerConfig(image_size=336, patch_size=14, hidden=64, layers=3, heads=2, ffn=96)

    def build():
        return Encoder(clip.Tower(tower), found.Projector(small_projector(found, tower, 64)))

    module = randomized(build())
    written = write(format, Component("vision", build, {}), module, scheme, tmp_path, lambda done: None)
    part = PartFiles("tflite", scheme, ("vision", "projector"), written.files, written.inputs, written.outputs)
    pixels = np.random.default_rng(3).normal(size=(1, 3, 336, 336)).astype(np.float32)
    rows = open_part(part, "litert", OPTIONS).run({"pixel_values": pixels})["image_embeds"]
    with torch.inference_mode():
        expected = module(torch.from_numpy(pixels)).numpy()
    assert expected.std() > 0.1
    error, tolerance = distance(rows, expected), format.SCHEMES["vision"][scheme]
    assert error["cosine"] >= tolerance["cosine"]
    assert error["max_abs"] <= tolerance.get("max_abs", 1.0)


def test_wrong_weights_are_seen(exact, tmp_path):
    """The comparison of the tests above fails when one weight of the file is another's."""
    module, part = exact
    content = bytearray(part.files[0].read_bytes())
    weight = module.layers[1].down_proj.weight.numpy().tobytes()
    at = bytes(content).index(weight)
    content[at : at + len(weight)] = (2 * module.layers[1].down_proj.weight).numpy().tobytes()
    (tmp_path / "decoder.tflite").write_bytes(content)
    changed = dataclasses.replace(part, files=(tmp_path / "decoder.tflite", *part.files[1:]))
    ids, rows = prompt(module, 20)
    logits = open_part(changed, "litert", OPTIONS).extend([Tokens(ids)])
    assert distance(logits, reference(module, rows))["cosine"] < 0.999


def test_weights_are_stored_once(exact):
    _, part = exact
    largest = llama.Decoder(CONFIG).state_dict()
    numbers = sum(tensor.numel() for name, tensor in largest.items() if name != "embed_tokens.weight")
    signatures = tflite.read(part.files[0]).signatures
    assert list(signatures) == ["prefill", "decode_256", "decode_512", "decode_600"]
    assert part.files[0].stat().st_size < 4 * numbers + 30_000 * len(signatures)


# Sizes that are 509, or follow from 509 positions: of the cache, of the queries that share a key, of both together.
SAME_SIZES = (
    {"context": 509},
    {"context": 1018},
    {"ffn": 509},
    {"ffn": 1018},
    {"vocab": 509},
    {"vocab": 765},
    {"vocab": 1109},
    {"hidden": 1018},
    {"head_dim": 1018},
)


@pytest.mark.parametrize("change", SAME_SIZES, ids=str)
def test_no_size_of_a_model_is_taken_for_one_that_varies(change, tmp_path):
    config = dataclasses.replace(CONFIG, **{"layers": 1, **change})
    module, part = written_decoder(config, "fp32", tmp_path)
    decoder = open_part(part, "litert", OPTIONS)
    ids, rows = prompt(module, 300)
    decoder.extend([Tokens(ids[:1])])
    assert distance(decoder.extend([Tokens(ids[1:])]), reference(module, rows))["cosine"] >= 0.999999


def test_what_has_no_rule_is_refused_by_name(tmp_path):
    class Odd(Encoder):
        def forward(self, pixels):
            return super().forward(pixels).cumsum(dim=1)

    tower = clip.tiny().config
    found, _ = projectors.find("linear")

    def build():
        return Odd(clip.Tower(tower), found.Projector(ProjectorConfig(tower.hidden, 64, tower.grid)))

    with pytest.raises(EdgeError, match="TFLite: there is no rule for cumsum") as caught:
        write(format, Component("vision", build, {}), randomized(build()), "fp32", tmp_path)
    assert "--format" in caught.value.hint


def test_importance_guides_the_rounding(tmp_path):
    name = "layers.0.down_proj.weight"
    importance = torch.zeros(CONFIG.ffn)
    importance[:8] = 1.0
    config = dataclasses.replace(CONFIG, context=64)
    errors = []
    for given in ({}, {name: importance}):
        (tmp_path / str(len(given))).mkdir()
        module, _ = written_decoder(config, "w4", tmp_path / str(len(given)), given)
        before = random_decoder(config).state_dict()[name]
        errors.append(float((module.state_dict()[name] - before)[:, :8].square().sum()))
    assert errors[1] < 0.9 * errors[0]


def test_four_bits_need_whole_blocks(tmp_path):
    config = dataclasses.replace(CONFIG, ffn=80, context=64)
    with pytest.raises(EdgeError, match="80 wide, and 4-bit blocks of a TFLite file are 32"):
        written_decoder(config, "w4", tmp_path)


def test_scales_are_what_xnnpack_takes():
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(1)) * torch.logspace(-9, 2, 64)[:, None]
    weight[3] = 0
    found = integers.blockwise(weight, 4, positive=True)
    assert bool((found.scales >= torch.finfo(torch.float16).tiny).all())
    assert torch.equal(found.scales.half().float(), found.scales)
    assert torch.equal(found.scales.bfloat16().float(), found.scales)
    assert int(found.values.min()) >= -8 and int(found.values.max()) <= 7
    large = weight[40:]
    error = (integers.blockwise(large, 4, positive=True).dequantized() - large).square().sum() / large.square().sum()
    assert float(error) < 0.008


def test_large_files_keep_their_numbers_behind_the_structure(exact, tmp_path, monkeypatch):
    """As beyond 2 GiB, where a flatbuffer ends."""
    module, _ = exact
    monkeypatch.setattr("exporters.tflite_model._INLINE", 1000)
    module, part = written_decoder(dataclasses.replace(CONFIG, context=64), "fp32", tmp_path)
    ids, rows = prompt(module, 20)
    logits = open_part(part, "litert", OPTIONS).extend([Tokens(ids)])
    np.testing.assert_allclose(logits, reference(module, rows), atol=1e-4)


def test_packed_weights_are_kept_for_the_next_start(exact):
    _, part = exact
    open_part(part, "litert", OPTIONS)
    assert [path.suffix for path in xnnpack_cache.folder().iterdir()] == [".bin"]
