"""Sizes of a model are what its manifest says; of schema 1, which does not say, they are guessed."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from conftest import SPEC
from hypothesis import given
from hypothesis import strategies as st

from edge.bundle.manifest import File, Manifest, Part
from edge.planning import roofline
from edge.planning.sizes import Sizes, bytes_per_token, sizes
from edge.spec import DecoderSpec, VisionSpec

DECODER = DecoderSpec(2, 4, 2, 8, 32, 100, 1024, 1e4, rope_dim=8, family="tiny", ffn=48, gated=True)
LINEAR = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)


def manifest(
    image: int, tokens: int, vision: VisionSpec | None, weights: int, decoder: DecoderSpec = DECODER
) -> Manifest:
    """Stored in fp32; of schema 1 where `vision` is None."""
    image_spec, prompt = replace(SPEC.image, size=image), replace(SPEC.prompt, image_tokens=tokens)
    counts = weights, LINEAR + 2 * 3200
    parts = tuple(
        Part(covers, "onnx", "fp32", (File("f", 4 * count, ""),), (), (), weights=count if vision else None)
        for covers, count in zip((("vision", "projector"), ("decoder",)), counts, strict=True)
    )
    decoder = decoder if vision else replace(decoder, rope_dim=None, family=None, ffn=None, gated=None)
    spec = replace(SPEC, image=image_spec, prompt=prompt, decoder=decoder, vision=vision)
    return Manifest("m", {}, "", "", spec, {}, parts, File("t", 0, ""), File("g", 0, ""), {})


def read(made: Manifest) -> Sizes:
    return sizes(made, made.parts)


# width, layers, heads, positions, patches; weights of encoder and projector; the patches that schema 1 suggests
TOWERS = {
    "ViT-L/14 of 336, stacked by four": (336, 144, VisionSpec(1024, 23, 16, 577, 576), 302_808_039, 576),
    "ViT-B/32 of 224": (224, 49, VisionSpec(768, 12, 12, 50, 49), 87_000_000, 196),
    "64 queries of 336/14": (336, 64, VisionSpec(1024, 24, 16, 577, 576), 310_000_000, 256),
    "512/16, shuffled by four": (512, 64, VisionSpec(768, 12, 12, 1024, 1024), 93_000_000, 256),
    "1024/64": (1024, 256, VisionSpec(1024, 24, 16, 256, 256), 300_000_000, 1024),
}


@pytest.mark.parametrize(("image", "tokens", "vision", "weights", "guess"), TOWERS.values(), ids=TOWERS)
def test_towers_of_any_shape_are_told_exactly(
    image: int, tokens: int, vision: VisionSpec, weights: int, guess: int
) -> None:
    found = read(manifest(image, tokens, vision, weights))
    assert (found.width, found.layers, found.heads, found.positions) == (
        *(vision.width, vision.layers, vision.heads),
        vision.positions,
    )
    assert (found.vision, found.image_tokens) == (weights, tokens)
    assert roofline.encode(found, True).attention == 4 * vision.positions**2 * vision.width * vision.layers
    scores = vision.heads * vision.positions**2
    assert roofline.vision_activations(found) == 4 * (12 * vision.positions * vision.width + scores)
    assert read(manifest(image, tokens, None, weights)).positions == guess + 1, "what bytes alone suggest"


counts = st.integers(1, 1 << 20)


@given(vision=st.builds(VisionSpec, counts, counts, counts, counts, counts), weights=counts, ffn=counts, gated=...)
def test_sizes_are_what_the_manifest_says(vision: VisionSpec, weights: int, ffn: int, gated: bool) -> None:
    found = read(manifest(336, 144, vision, weights, replace(DECODER, ffn=ffn, gated=gated)))
    told = {name: value for name, value in asdict(vision).items() if name != "patches"}
    assert {name: getattr(found, name) for name in told} == told
    assert (found.vision, found.decoder, found.head) == (weights, LINEAR, 3200)
    assert (found.ffn, found.gated) == (ffn, gated)


def test_several_parts_are_counted_together() -> None:
    made = manifest(336, 144, SPEC.vision, 1000)
    tower, decoder = made.parts
    alone = (replace(tower, covers=("vision",), weights=900), replace(tower, covers=("projector",), weights=100))
    assert sizes(made, (*alone, decoder)) == read(made)
    assert sizes(made, (decoder,)).vision == 0
    assert roofline.vision_activations(sizes(made, (decoder,))) == 0


def test_layers_without_a_gate_move_less() -> None:
    gated = read(manifest(336, 144, SPEC.vision, 1000))
    plain = replace(gated, gated=False)
    saved = 2 * 10 * 2 * ((32 + 48) + 2 * 48)  # one matmul less, and an activation that reads one row less and a gate
    assert roofline.activations_moved(gated, 10) - roofline.activations_moved(plain, 10) == saved


def test_a_table_within_the_file_is_stored_as_the_rest_is() -> None:
    part = Part(("decoder",), "gguf", "a scheme of tomorrow", (File("d", 30_000, ""),), (), (), weights=60_000)
    assert bytes_per_token(part, read(manifest(336, 144, SPEC.vision, 1000))) == 30_000 - 3200 / 2
