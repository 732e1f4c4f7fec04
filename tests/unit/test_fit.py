"""The arithmetic of memory and time, by cases worked by hand."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from conftest import SPEC

from edge.bundle.manifest import File, Manifest, Part
from edge.devices import DeviceProfile, Figure, profile
from edge.engines import EngineInfo, installed_engines
from edge.errors import EngineError, UsageError
from edge.planning import fit as fits
from edge.planning import roofline
from edge.planning.alternatives import schemes
from edge.planning.fit import fit
from edge.planning.memory import RUNTIME, Need, cache_bytes, memory, settle
from edge.planning.roofline import PROCESSOR, Speed, Utilisation
from edge.planning.sizes import bytes_per_token, guessed, sizes
from edge.spec import DecoderSpec
from edge.types import TensorSpec
from edge.units import format_size, parse_size

# 2 layers, 4 heads of 8 (2 of keys and values), hidden 32, vocabulary 100; a feed-forward of 48.
DECODER = DecoderSpec(2, 4, 2, 8, 32, 100, 1024, 10000.0)
LINEAR = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
TINY = guessed(DECODER, image_tokens=4, patches=4, vision=12_288_000, decoder=LINEAR)
WHOLE = Utilisation(1.0, 1.0, 1.0, 1.0)


def test_what_is_read_off_a_manifest() -> None:
    vision = Part(("vision", "projector"), "onnx", "w8a8", (File("v", 1000, ""), File("v.data", 500, "")), (), ())
    decoder = Part(("decoder",), "onnx", "fp32", (File("d", 4 * (LINEAR + 6400), ""),), (), ())
    found = sizes(manifest(vision, decoder), (vision, decoder))
    assert found == guessed(DECODER, 4, 4, 1500, LINEAR)
    assert (found.vision, found.positions, found.decoder, found.head) == (1500, 5, LINEAR, 3200)
    large = replace(manifest(vision, decoder), spec=replace(SPEC, image=replace(SPEC.image, size=56), decoder=DECODER))
    assert sizes(large, (vision, decoder)).positions == 17, "28 pixels a row: four patches were merged"


def test_a_tower_from_its_weights() -> None:
    large = guessed(DECODER, 144, 576, vision=24 * 12 * 1024**2, decoder=LINEAR)
    assert (large.width, large.layers, large.heads) == (1024, 24, 16)
    work = roofline.encode(large, quantised=True)
    assert (work.int8, work.attention) == (2 * large.vision * 577, 4 * 577**2 * 1024 * 24)
    assert roofline.encode(large, quantised=False).int8 == 0
    assert roofline.encode(large, quantised=False).flop == work.flop


def test_a_prompt() -> None:
    work = roofline.prefill(TINY, 10, True, 5000.0)
    assert work.int8 == 2 * (LINEAR * 10 + 3200)
    assert work.attention == 2 * 10**2 * 4 * 8 * 2, "two products, of which the causal half"
    assert TINY.ffn == 48
    linear = 2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48)
    moved = 2 * 10 * 2 * (linear + 10 * 32 + 4 * 48 + 4 * 32 + 4 * 4 * 10)
    assert work.bytes == 5000 + moved


def test_a_token() -> None:
    work = roofline.step(TINY, 7, 5000.0, 2.0)
    assert work.bytes == 5000 + 7 * (2 * 2 * 2 * 8 * 2)
    speed = Speed(bandwidth=1e6, int8=None, fp32=None)
    assert roofline.token_seconds(work, speed, replace(WHOLE, decode=0.5)) == work.bytes / 5e5
    assert roofline.token_seconds(work, Speed(None, 1e9, 1e9), WHOLE) is None


def test_a_stage_takes_the_longer_of_computing_and_moving() -> None:
    work = roofline.Work(int8=8e9, attention=2e9, bytes=1e9)
    use = Utilisation(decode=0.5, prefill=0.25, vision=1.0, attention=0.5)
    assert roofline.seconds(work, Speed(1e9, 32e9, 4e9), 0.25, use) == 8e9 / 8e9 + 2e9 / 2e9
    assert roofline.seconds(work, Speed(1e8, 32e9, 4e9), 0.25, use) == 20.0
    assert roofline.seconds(work, Speed(1e9, None, 4e9), 0.25, use) is None
    assert roofline.seconds(work, Speed(None, 32e9, 4e9), 0.25, use) == 2.0


def test_what_a_token_reads_is_not_the_embedding_table() -> None:
    beside = tuple(
        File(name, count, "") for name, count in (("d", 900), ("embed_tokens.npy", 70), ("embed_scales.npy", 5))
    )
    assert bytes_per_token(Part(("decoder",), "onnx", "w4", beside, (), ()), TINY) == 900
    within = Part(("decoder",), "gguf", "q8_0", (File("d", 30_000, ""),), (), ())
    assert bytes_per_token(within, TINY) == 30_000 - 3200 * 34 / 32


# memory


NEED = Need(TINY, vision=1000, decoder=5000, item=4, kinds=())


def test_a_position_of_the_cache() -> None:
    assert cache_bytes(DECODER, 4) == 2 * 2 * 2 * 8 * 4
    assert cache_bytes(DECODER, 34 / 32) == 68


def test_the_peak() -> None:
    width, positions = TINY.width, 5
    seeing = 4 * (12 * positions * width + width // 64 * positions**2)
    found = memory(NEED, 600)
    assert found.cache == 600 * 256
    assert found.activations == (seeing, 2 * 4 * 12 * 600 * 32)
    assert found.peak == RUNTIME + 1000 + seeing + 5000 + found.cache + found.activations[1]
    apart = memory(NEED, 600, None, one_at_a_time=True)
    assert apart.peak == RUNTIME + max(1000 + seeing, 5000 + found.cache + found.activations[1])


def test_keys_and_values_that_move_are_there_twice() -> None:
    keeps = replace(NEED, kinds=("f16", "q8_0"), copies=2)
    assert memory(keeps, 512).cache == 512 * 128
    assert memory(keeps, 1024).activations[1] == 4 * 12 * 512 * 32, "and takes a prompt piece by piece"
    assert memory(keeps, 1024).cache == 2 * 1024 * 128
    assert memory(keeps, 1024, "q8_0").cache == 2 * 1024 * 68
    assert memory(NEED, 1024).cache == 1024 * 256, "a graph's are written where they lie"


def test_engines_tell_how_often_the_cache_lies_in_memory() -> None:
    assert {e.name: e.copies for e in installed_engines() if e.copies != 1} == {
        "litert": 2,
        "llamacpp": 2,
        "tflite_runtime": 4,
    }


def test_the_shortest_context_holds_a_picture() -> None:
    pictures = replace(NEED, sizes=replace(TINY, image_tokens=576))
    room = memory(pictures, 768, None, True).peak
    found = settle(pictures, room)
    assert found and (found.context, found.one_at_a_time) == (768, True)
    assert settle(pictures, room - 1) is None
    assert settle(pictures, room, asked=1024) is None, "what was asked for is not shortened"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1.5GB", 1_500_000_000),
        ("1.5GiB", 3 << 29),
        ("800M", 800_000_000),
        ("2 kB", 2000),
        ("1024", 1024),
        ("1g", 10**9),
    ],
)
def test_a_size(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1.5XB", "0", "1e9", "1,5GB", "nan", "١GB", "i", "1i", "1iB"])
def test_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="no size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (20_500_000, "20.5 MB"), (3.4e12, "3400.00 GB")]
)
def test_a_size_as_it_is_shown(count: float, text: str) -> None:
    assert format_size(count) == text


# a whole prediction


def manifest(*parts: Part, context: int = 1024) -> Manifest:
    spec = replace(SPEC, decoder=replace(DECODER, context=context))
    tokens = {"question": "?", "segments": [[1, 2, 3], None, [4, 5]]}
    file = File("tokenizer.json", 7, "")
    return Manifest("tiny", {}, "", "", spec, tokens, parts, file, File("golden.safetensors", 3, ""), {})


def known(**figures: float) -> DeviceProfile:
    found = {name: (Figure(value, "", "a test", False),) for name, value in figures.items()}
    engines = {"vision": ("sees",), "decoder": ("speaks",)}
    return DeviceProfile("d", "D", 1 << 30, 2, (), engines, "onnx-w8a8-w4", figures=found)


VISION = Part(("vision", "projector"), "onnx", "w8a8", (File("v.onnx", 12_288_000, ""),), (), ())
SPEAKS = Part(("decoder",), "gguf", "f16", (File("d.gguf", 2 * (LINEAR + 6400), ""),), (), ())
ENGINES = (
    EngineInfo("sees", ("onnx",), "sees", False, None, None),
    EngineInfo("speaks", ("gguf",), "speaks", False, None, None, caches=("f16", "q8_0"), providers={"cuda": ()}),
)


@pytest.fixture(autouse=True)
def _engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "installed_engines", lambda: ENGINES)


def test_a_prediction() -> None:
    device = known(bandwidth_theoretical=0.01, int8=1, fp32=0.5)
    found = fit(manifest(VISION, SPEAKS), device)
    assert found.value("bundle") == 12_288_000 + 2 * (LINEAR + 6400) + 10
    seen = roofline.encode(TINY, True)
    vision = seen.int8 / (1e9 * 0.6) + seen.attention / (0.5e9 * 0.6)
    assert found.value("vision") == pytest.approx(vision)
    weights = 2 * (LINEAR + 3200)
    read = roofline.prefill(TINY, 9, False, weights)
    moving = read.bytes / (0.01e9 * 0.75 * 0.75)
    computing = read.fp32 / (0.5e9 * 0.21) + read.attention / (0.5e9 * 0.6)
    assert found.value("prompt") == pytest.approx(max(moving, computing))
    assert found.value("first token") == pytest.approx(vision + max(moving, computing))
    token = (weights + (9 + 32) * 128) / (0.01e9 * 0.75 * 0.75)
    assert found.value("decode") == pytest.approx(1 / token)
    assert found.to_json()["fits"] is True
    assert all(row.assumes for row in found.rows)


def test_what_a_published_decoding_moved_goes_before_the_theoretical() -> None:
    both = fit(manifest(VISION, SPEAKS), known(bandwidth_theoretical=1, bandwidth_reached=0.3, int8=1, fp32=1))
    weights = 2 * (LINEAR + 3200)
    assert both.value("decode") == pytest.approx(0.3e9 / (weights + 41 * 128))
    measured = fit(manifest(VISION, SPEAKS), known(bandwidth_measured=1, int8=1, fp32=1))
    assert measured.value("decode") == pytest.approx(1e9 * PROCESSOR.decode / (weights + 41 * 128))


def test_what_an_engines_kernels_reach_goes_before_what_most_do(monkeypatch: pytest.MonkeyPatch) -> None:
    device = known(bandwidth_reached=0.3, int8=1, fp32=1)
    usual = fit(manifest(VISION, SPEAKS), device)
    quick = replace(ENGINES[1], reaches={"prefill": 0.42, "decode": 0.375})
    monkeypatch.setattr(fits, "installed_engines", lambda: (ENGINES[0], quick))
    found = fit(manifest(VISION, SPEAKS), device)
    assert found.value("decode") == pytest.approx(usual.value("decode") / 2)
    assert found.value("vision") == usual.value("vision")
    work = roofline.prefill(TINY, 9, False, 2 * (LINEAR + 3200))
    assert found.value("prompt") == pytest.approx(work.fp32 / 0.42e9 + work.attention / 0.6e9)


def test_every_engine_names_shares_that_there_are() -> None:
    names = {field.name for field in fields(Utilisation)}
    found = {engine.name: engine.reaches for engine in installed_engines()}
    assert found["litert"]
    assert all(set(shares) <= names and all(0 < share <= 1 for share in shares.values()) for shares in found.values())


def test_what_is_not_known_is_not_predicted() -> None:
    found = fit(manifest(VISION, SPEAKS), known())
    assert [found.value(name) for name in ("vision", "prompt", "first token", "decode")] == [None] * 4
    assert found.value("bundle")


def test_the_graphics_processor_where_the_engine_uses_it() -> None:
    device = replace(known(bandwidth_theoretical=1, int8=1, fp32=1, gpu_fp16=1), kind="jetson", provider="cuda")
    found = {row.name: row.assumes for row in fit(manifest(VISION, SPEAKS), device).rows}
    assert "graphics processor" in found["decode"]
    assert "graphics processor" not in found["vision"]


def test_keys_and_values_of_a_graph_have_its_dtype() -> None:
    def decode(dtype: str) -> Any:
        past = TensorSpec("past_key_values.0.key", dtype, (1, 2, "cache_length", 8))
        part = replace(SPEAKS, inputs=(past,))
        return fit(manifest(VISION, part), known(bandwidth_reached=1)).value("decode")

    weights = 2 * (LINEAR + 3200)
    assert decode("float32") == pytest.approx(1e9 / (weights + 41 * 256))
    assert decode("float16") == pytest.approx(1e9 / (weights + 41 * 128))


def test_an_engine_of_another_system_keeps_keys_and_values_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(item: int) -> Any:
        elsewhere = EngineInfo("speaks", ("gguf",), "speaks", False, None, None, unfit="not here", item=item)
        monkeypatch.setattr(fits, "installed_engines", lambda: (ENGINES[0], elsewhere))
        return fit(manifest(VISION, SPEAKS), known(bandwidth_reached=1)).value("decode")

    weights = 2 * (LINEAR + 3200)
    assert decode(4) == pytest.approx(1e9 / (weights + 41 * 256))
    assert decode(2) == pytest.approx(1e9 / (weights + 41 * 128))


def test_no_scheme_is_named_that_one_makers_systems_open_only() -> None:
    room = Need(sizes(manifest(VISION, SPEAKS), (VISION, SPEAKS)), 0, 0, 4, ())
    formats = {scheme.partition(" ")[0] for scheme in schemes(room, 1 << 40)}
    assert formats == {"onnx", "gguf", "tflite", "executorch"}


def test_a_device_that_is_too_small() -> None:
    small = replace(known(), memory_bytes=RUNTIME + 1000)
    with pytest.raises(EngineError, match="too little memory: tiny takes"):
        fit(manifest(VISION, SPEAKS), small)


def test_a_bundle_that_does_not_see() -> None:
    found = fit(manifest(SPEAKS), known(bandwidth_reached=1, int8=1, fp32=1))
    assert [row.name for row in found.rows if row.name in ("vision", "prompt")] == ["prompt"]


def test_every_profile_predicts_or_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    part = replace(VISION, files=(File("v.onnx", 1_000_000, ""),))
    for name in ("rpi4", "rpi5", "rpi_zero_2w", "sd_888", "jetson_orin_nano", "apple_a17pro", "pixel_8", "linux-x86"):
        found = fit(manifest(part, SPEAKS), profile(name))
        assert (found.value("decode") is None) == (name == "linux-x86"), name
