"""The page of results: what stands in it, and that it asks for nothing from outside. How it looks is another test's."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from bench_fakes import facts, run, samples

from edge.bench import schema
from edge.errors import EdgeError
from exporters.report import write
from exporters.report.page import page
from exporters.report.plots import COLOURS
from exporters.report.runs import gather

SVG = "{http://www.w3.org/2000/svg}"
TWO = {"a.json": run(seconds=300) + run(1.5, seconds=300, model_type="other w8a8+w4", memory_limit_bytes=1_000_000_000)}


def plots(text: str) -> list[ElementTree.Element]:
    spaces = 'xmlns="http://www.w3.org/2000/svg" '
    return [
        ElementTree.fromstring(svg.replace("<svg ", f"<svg {spaces}", 1))
        for svg in re.findall(r"<svg.*?</svg>", text, re.S)
    ]


def words(plot: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()).strip() for text in plot.iter(f"{SVG}text")]


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.headings: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self._inside == "td":
            self.cells[-1] += data
        if self._inside == "h2":
            self.headings.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def test_each_plot_for_a_wide_and_a_narrow_window() -> None:
    text = page(gather(TWO, 17.1e9))
    assert Page(text).headings == [
        *("To be wary of", "The first answer, by stage", "Decoding", "Memory", "Speed under load", "All figures")
    ]
    found = plots(text)
    assert [svg.get("viewBox", "").split()[2] for svg in found] == ["760", "350"] * 4
    first, decoding, memory, load = (words(plot) for plot in found[::2])
    assert "6.62 s" in first and "9.93 s" in first and "from the question to the first token, in s" in first
    assert "8.99 of 22.8 t/s" in decoding and "tokens per second" in decoding  # 17.1 GB/s over 0.75 GB a token
    assert {"1.37 of 4.00 GB", "1.37 of 1.00 GB"} <= set(memory)
    assert {"tokens per second", "temperature, in °C", "clock, in MHz", "seconds under load"} <= set(load)
    assert "9.0 t/s at first, 5.6 t/s at the end (−38 %)" in text
    assert "more than was free" in text


def test_bars_are_as_long_as_what_they_show() -> None:
    """The stages' widths in the picture are to each other as their times."""
    (svg,) = (svg for svg in plots(page(gather({"a": run()})))[:1])
    lengths = {}
    for path in svg.iter(f"{SVG}path"):
        if match := re.search(r"fill: var\(--(c\d)\)", path.get("style", "")):
            xs = [float(x) for x in re.findall(r"[ML] ([\d.]+) ", path.get("d", ""))]
            lengths[match[1]] = max(xs) - min(xs)
    assert lengths["c2"] / lengths["c1"] == pytest.approx(4.4 / 2.1, rel=1e-3)
    assert lengths["c1"] / lengths["c0"] == pytest.approx(2100 / 12, rel=1e-2)


def test_the_page_asks_for_nothing() -> None:
    text = page(gather(TWO, 17.1e9))
    tags = Page(text).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert {"http-equiv": "Content-Security-Policy", "content": "default-src 'none'; style-src 'unsafe-inline'"} in [
        attributes for _, attributes in tags
    ]
    for _, attributes in tags:
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("src", "srcset", "data")
            assert name not in ("href", "xlink:href") or (value or "").startswith("#")
    assert not re.search(r"url\((?!#)|@import", text)
    assert len(text) < 300_000


def test_nothing_is_drawn_in_a_colour_that_the_style_does_not_know() -> None:
    text = page(gather(TWO, 17.1e9))
    assert not re.search(r"(fill|stroke): ?#", text)
    used = set(re.findall(r"var\(--(\w+)\)", text))
    light, dark = re.findall(r":root \{(.*?)\}", text, re.S)
    assert set(COLOURS) >= used - {"paper", "card", "soft", "warn"}
    for name in used:
        assert f"--{name}:" in light and f"--{name}:" in dark


def test_ids_are_of_one_plot_only() -> None:
    ids = re.findall(r'\bid="([^"]+)"', page(gather(TWO, 17.1e9)))
    clips = [name for name in ids if re.fullmatch(r"[pm][0-9a-f]{8,}", name)]
    assert clips and len(clips) == len(set(clips))


def test_words_of_a_bundle_are_no_markup() -> None:
    wild = run(model_type='<script>alert(1)</script> $x_1$ & "q"', device="<b>")
    text = page(gather({"a": wild}))
    assert "<script" not in text and "&lt;script&gt;" in text and "<b>" not in text
    assert any("$x_1$" in word for plot in plots(text) for word in words(plot))


def test_what_was_not_measured_is_not_drawn() -> None:
    only = [schema.timed(samples("pp190", 900, n_prompt=190), facts())]
    found = Page(page(gather({"a": only})))
    assert found.headings == ["All figures"]
    assert found.cells == ["pp190", "211.11", "900.00", "94% 0.9988"]
    text = page(gather({"a": run()}))
    assert "there is no roofline" in text and "Speed under load" not in text


def test_a_bandwidth_in_the_results_goes_before() -> None:
    (told,) = gather({"a": run(bandwidth=9.0e9)}, 17.1e9)
    assert told.roofline(told.decoding()[0]) == pytest.approx(12.0)


def test_runs_that_look_the_same_are_told_apart() -> None:
    same = gather({"x/before.json": run(), "x/after.json": run()})
    assert [r.label.rpartition(" · ")[2] for r in same] == ["before", "after"]
    devices = gather({"a": run(), "b": run(device="Jetson")})
    assert [r.label.rpartition(" · ")[2] for r in devices] == ["Raspberry Pi 5 Model B Rev 1.0", "Jetson"]
    folders = gather({"a": run(model_filename="p/one") + run(model_filename="q/two")})
    assert [r.label.rpartition(" · ")[2] for r in folders] == ["one", "two"]
    assert len({r.label for r in gather({"x/a.json": run(), "y/a.json": run()})}) == 2


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    write({"a": run()}, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    with pytest.raises(EdgeError, match="cannot write"):
        write({"a": run()}, tmp_path / "none" / "page.html")
