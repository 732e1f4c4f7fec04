"""The page's files, metrics and benchmarks: what stands beside the answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from serving import Served, asked, photo, served

from edge.errors import EngineError
from edge.server import benchmarks
from edge.server.metrics import Metrics

PAGE = REPOSITORY / "edge" / "server" / "page"


def test_every_file_of_the_page_is_served(server: Served) -> None:
    assert server.get("/").body == (PAGE / "index.html").read_bytes()
    for file in PAGE.iterdir():
        if file.name != "index.html":
            got = server.get(f"/page/{file.name}")
            assert got.body == file.read_bytes()
    assert server.get("/page/app.js").headers["content-type"].startswith("text/javascript")
    assert server.get("/page/style.css").headers["content-type"].startswith("text/css")


def test_the_page_asks_nobody_else() -> None:
    for file in PAGE.iterdir():
        text = file.read_text(encoding="utf-8")
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == []
        for reference in re.findall(r"""(?:src|href|from)\s*=?\s*["'](/[^"']*)["']""", text):
            assert (PAGE / reference.removeprefix("/page/")).is_file(), reference


def test_metrics_count_what_happened(served_bundle: Path) -> None:
    with served(served_bundle, kept=10_000_000) as server:
        server.chat(asked("Why?", photo()), max_tokens=5)
        server.chat(asked("How?", photo(2)), max_tokens=5)
        server.chat([])
        server.get("/nothing")
        text = server.get("/metrics").body.decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['edge_requests_total{endpoint="/v1/chat/completions",status="200"}'] == "2"
    assert values['edge_requests_total{endpoint="/v1/chat/completions",status="400"}'] == "1"
    assert values['edge_requests_total{endpoint="other",status="404"}'] == "1"
    assert values['edge_pictures_total{model="tiny"}'] == "2"
    assert int(values['edge_generated_tokens_total{model="tiny"}']) <= 10
    assert values["edge_first_token_seconds_count"] == "2" == values['edge_first_token_seconds_bucket{le="+Inf"}']
    assert values["edge_requests_held"] == "0"
    assert float(values["edge_kept_bytes"]) > 0 and values["edge_kept_prefixes"] == "1"
    assert float(values["process_resident_memory_bytes"]) > 1e6


def test_times_fall_into_buckets() -> None:
    metrics = Metrics()
    for seconds in (0.005, 0.01, 0.02, 5, 1000):
        metrics.time("t", seconds)
    lines = metrics.text().splitlines()
    assert 't_bucket{le="0.01"} 2' in lines and 't_bucket{le="0.03"} 3' in lines
    assert 't_bucket{le="10.0"} 4' in lines and 't_bucket{le="+Inf"} 5' in lines
    assert "t_sum 1005.035" in lines


def test_a_benchmark_gives_its_rows(served_bundle: Path) -> None:
    def measure(bundle: Path) -> Iterator[Any]:
        assert bundle == served_bundle
        yield {"test": "pp1", "avg_ts": 5.0, "model_filename": str(bundle)}
        yield EngineError("no")

    with served(served_bundle, measure=measure) as server:
        got = server.post("/v1/benchmarks", {})
        row, error, end = got.events
        assert row == {"test": "pp1", "avg_ts": 5.0, "model_filename": "tiny"}
        assert error["error"]["code"] == "internal_error"
        assert end == "[DONE]"
        assert server.post("/v1/benchmarks", {"model": "other"}).status == 404
        assert server.post("/v1/benchmarks", {"more": 1}).error["param"] == "more"


def test_a_benchmark_that_fails_ends(served_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(bundle: Path) -> Iterator[Any]:
        raise EngineError("no")
        yield

    with served(served_bundle, measure=measure) as server:
        assert [*map(str, server.post("/v1/benchmarks", {}).events)][-1] == "[DONE]"
        monkeypatch.setattr(benchmarks, "detect", lambda: type("Small", (), {"memory_bytes": 1})())
        got = server.post("/v1/benchmarks", {})
        assert (got.status, server.chat(asked("Why?")).status) == (503, 200)
