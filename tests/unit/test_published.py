"""The arithmetic against what others published of these models (tests/data/published.json), and against this machine.

The published figures are of llama.cpp at the turn of 2023 to 2024: its kernels reached other shares of a peak than
today's. One share a stage and kind of unit, not a device, is asked to explain all of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from edge.devices import profile
from edge.planning import roofline
from edge.planning.roofline import PROCESSOR, READING, Speed, Utilisation
from edge.planning.sizes import Sizes, guessed
from edge.spec import DecoderSpec

DATA = json.loads((Path(__file__).parents[1] / "data" / "published.json").read_text())
TOWER = 302_808_039  # ViT-L/14-336 without its last layer, and the projector


def sizes(layers: int, hidden: int, ffn: int, heads: int, rows: int = 144, vision: int = TOWER) -> Sizes:
    decoder = layers * (4 * hidden**2 + 3 * hidden * ffn)
    spec = DecoderSpec(layers, heads, heads, hidden // heads, hidden, 32000, 2048, 10000.0)
    return guessed(spec, rows, 576, vision, decoder)


SIZES = {
    "1.4b": sizes(24, 2048, 5632, 16),
    "2.7b": sizes(32, 2560, 6912, 32),
    "7b": sizes(32, 4096, 11008, 32),
}
BYTES = {"q4_k_s": 0.59, "q4_k": 0.59, "q8_0": 1.0625}  # of a weight
THEN = Utilisation(decode=0.36, prefill=0.09, vision=0.12, attention=0.12)
THEN_GRAPHICS = Utilisation(decode=0.36, prefill=0.03, vision=0.02, attention=0.02)
# General knowledge: a laptop's memory, and fp32 lanes x clock; int8 without and with dot products.
LAPTOPS = {"i7-10750H": Speed(45.8e9, 1536e9, 768e9), "Ultra 7": Speed(89.6e9, 3456e9, 864e9)}
FACTORS = {"model_size": 1.2, "decode": 1.8, "prompt_eval": 2.2, "vision_encode": 1.6, "total_400_tokens": 1.8,
           "total_256_tokens": 1.8, "end_to_end_throughput": 1.8}  # fmt: skip
PROMPT = 190  # positions of the README's question, where a figure does not say


def unit(device: str) -> tuple[Speed, Utilisation]:
    if device in LAPTOPS:
        return LAPTOPS[device], THEN
    found = profile(device)
    bandwidth, int8, fp32, graphics = (found.known(n) for n in ("bandwidth_theoretical", "int8", "fp32", "gpu_fp16"))
    assert bandwidth and int8 and fp32
    if device.startswith("jetson"):
        assert graphics
        return Speed(1e9 * bandwidth.value, 1e12 * graphics.value, 1e12 * graphics.value), THEN_GRAPHICS
    return Speed(1e9 * bandwidth.value, 1e9 * int8.value, 1e9 * fp32.value), THEN


def predicted(figure: dict[str, Any]) -> float | None:
    """None: what it would be computed from is not published."""
    model, (speed, use) = SIZES[figure["size"]], unit(figure["device"])
    weights = (model.decoder + model.head) * BYTES[figure["scheme"]]

    def decode(position: int) -> float:
        seconds = roofline.token_seconds(roofline.step(model, position, weights, 2.0), replace(speed), use)
        assert seconds
        return 1 / seconds

    def prompt() -> float:
        seconds = roofline.seconds(roofline.prefill(model, PROMPT, True, weights), speed, use.prefill, use)
        assert seconds
        return seconds

    def see() -> float:
        seconds = roofline.seconds(roofline.encode(model, quantised=False), speed, use.vision, use)
        assert seconds
        return seconds

    if figure["value"] < 1 and figure["metric"] in ("decode", "prompt_eval"):
        return None  # a run that its own page shows as gone wrong
    match figure["metric"]:
        case "model_size":
            seeing = 2.0 * model.vision if figure["source"] == "mvlm1_t6" else 0.0
            return ((model.decoder + 2 * model.head) * BYTES[figure["scheme"]] + seeing) / 1e9
        case "decode":
            return decode(PROMPT + 128)
        case "prompt_eval":
            return PROMPT / prompt()
        case "vision_encode":
            return 1e3 * see() if figure["value"] < 1e5 else None  # the same run
        case "total_400_tokens":
            return 400 / decode(200)
        case "total_256_tokens":
            seen = 0.0 if figure["source"] == "mvlm1_t6" else see()  # that table leaves it out
            return seen + prompt() + 256 / decode(PROMPT + 128)
        case "end_to_end_throughput":
            return 256 / (see() + prompt() + 256 / decode(PROMPT + 128))
    return None  # per patch of an unknown count; totals of an unknown number of tokens; the prompt's own length


def name(figure: dict[str, Any]) -> str:
    return "-".join(figure[key] for key in ("device", "model", "scheme", "metric"))


@pytest.mark.parametrize("figure", DATA["figures"], ids=name)
def test_a_published_figure(figure: dict[str, Any]) -> None:
    assert figure["source"] in DATA["sources"]
    found = predicted(figure)
    if found is None:
        without = ("total", "prompt_tokens", "vision_encoder_per_patch")
        assert figure["metric"] in without or figure["device"] == "sd_778g"
        return
    factor = FACTORS[figure["metric"]]
    assert 1 / factor < found / figure["value"] < factor, f"{found:.4g} for {figure['value']:.4g}"


def test_most_figures_have_their_inputs() -> None:
    assert sum(predicted(figure) is not None for figure in DATA["figures"]) >= 60


def rows() -> list[str]:
    """The table of BENCHMARKS.md: the range published, the prediction, their ratio."""
    names = {"vision_encode": "picture, f16, s", "prompt_eval": "prompt, tok/s", "decode": "decode, tok/s"}
    table = []
    for device in ("sd_888", "sd_778g", "jetson_agx_orin", "i7-10750H", "Ultra 7"):
        for metric, name in names.items():
            for size in ("1.4b", "2.7b"):
                for scheme in ("q4", "q8_0"):
                    found = [(f["value"], value) for f in DATA["figures"]
                             if (f["device"], f["metric"], f["size"]) == (device, metric, size)
                             and f["scheme"].startswith(scheme) and (value := predicted(f)) is not None]  # fmt: skip
                    if not found:
                        continue
                    scale = 1e-3 if metric == "vision_encode" else 1
                    low, high = (shown(scale * pick(v for v, _ in found)) for pick in (min, max))
                    span = low if low == high else f"{low} – {high}"
                    what = "" if metric == "vision_encode" else f" {scheme}"
                    table.append(f"| {device} | {size}{what} | {name} | {shown(scale * found[0][1])} | {span} |")
    return table


def shown(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def test_the_page_shows_what_is_predicted() -> None:
    page = (REPOSITORY / "BENCHMARKS.md").read_text()
    for row in rows():
        assert row in page


# this machine, whose limits were measured: see BENCHMARKS.md

HERE = Speed(42.5e9, 1850e9, 500e9)


@pytest.mark.parametrize(
    ("what", "measured"),
    [("vision", (0.42, 0.50)), ("prompt w4", (161, 180)), ("decode w4", (31, 44))],
)
def test_this_machine_within_a_fifth(what: str, measured: tuple[float, float]) -> None:
    model = SIZES["1.4b"]
    weights = 886_963_375 - 0.64 * model.head
    seen = roofline.seconds(roofline.encode(model, True), HERE, PROCESSOR.vision, PROCESSOR)
    read = roofline.seconds(roofline.prefill(model, 188, True, weights), HERE, PROCESSOR.prefill, PROCESSOR)
    token = roofline.token_seconds(roofline.step(model, 220, weights, 4), HERE, PROCESSOR)
    assert seen and read and token
    found = {"vision": seen, "prompt w4": 188 / read, "decode w4": 1 / token}[what]
    middle = sum(measured) / 2
    assert abs(found / middle - 1) < 0.2, found


# larger models are arithmetic: https://arxiv.org/abs/2405.10739 quotes LLaVA-1.5 at 336 pixels and 40 text tokens


@pytest.mark.parametrize(
    ("model", "tera", "giga"),
    [(sizes(40, 5120, 13824, 40, 576), 18.2, 41.6), (sizes(32, 4096, 11008, 32, 576), 9.3, 23.3)],
    ids=["13b", "7b"],
)
def test_the_often_quoted_cost(model: Sizes, tera: float, giga: float) -> None:
    weights = 2.0 * (model.decoder + 2 * model.head + model.vision)
    work = roofline.prefill(model, 616, False, weights)
    flop = work.flop + roofline.encode(model, False).flop
    assert abs(flop / 1e12 / tera - 1) < 0.15, flop
    assert abs(work.bytes / 1e9 / giga - 1) < 0.15, "what one prompt moves, not what must be resident"
    resident = weights + 616 * 4.0 * model.spec.layers * model.spec.hidden
    assert resident / 1e9 < 0.7 * giga


def test_the_bandwidth_that_is_read_is_less_than_the_theoretical() -> None:
    pi = profile("rpi5")
    theoretical, reached = pi.known("bandwidth_theoretical"), pi.known("bandwidth_reached")
    assert theoretical and reached
    predicted = theoretical.value * READING * PROCESSOR.decode
    assert abs(predicted / reached.value - 1) < 0.2


def test_every_source_is_named() -> None:
    assert all(re.search(r"arXiv|README|llama\.cpp", text) for text in DATA["sources"].values())
