"""ONNX Runtime on a card: its bindings with the processor in the card's place, and what is said where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from card_fakes import CARD
from fakes import DECODER, FIXED, words
from onnx import helper
from test_onnxruntime import PAIR, feed, write, write_decoder

from edge.decoders.kv_cache import CardCache
from edge.decoders.kv_graph import kv_decoder
from edge.devices import nvidia
from edge.devices.nvidia import Graphics
from edge.engines import open_part, provider_refusals
from edge.errors import EngineError, ProviderError
from edge.types import DeviceGraph, Graph, OpenOptions, PartFiles, Tokens
from runtimes import onnxruntime
from runtimes.onnxruntime import card as on_card
from runtimes.onnxruntime import graph as on_cpu

SPEC = replace(DECODER, context=64)
ON_CARD = OpenOptions(threads=1, context=64, provider="cuda")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The processor in its place: memory, session and all."""
    monkeypatch.setattr(on_card, "_CARD", "cpu")
    monkeypatch.setattr(on_card, "open_session", lambda path, options: on_cpu.open_session(str(path), options.threads))
    return


@pytest.fixture
def pair(tmp_path: Path) -> PartFiles:
    nodes = [helper.make_node("Add", ["x", "y"], ["sum"]), helper.make_node("Add", ["x", "x"], ["twice"])]
    return write(tmp_path / "pair.onnx", *PAIR, nodes)


def opened(part: PartFiles, options: OpenOptions = ON_CARD) -> Any:
    return open_part(part, "onnxruntime", options)


@pytest.mark.usefixtures("card")
def test_the_cards_arrays_are_read_and_written_where_they_lie(pair: PartFiles) -> None:
    graph = opened(pair)
    assert isinstance(graph, DeviceGraph)
    kept = graph.zeros((1, 3, 4), "float32")
    feeds = feed(3)
    found = graph.run({"x": feeds["x"], "y": kept}, {"sum": kept})
    np.testing.assert_array_equal(found["twice"], 2 * feeds["x"])
    np.testing.assert_array_equal(kept.read(), feeds["x"])
    graph.run({"x": feeds["x"], "y": kept}, {"sum": kept})
    np.testing.assert_array_equal(kept.read(), 2 * feeds["x"])
    kept.write(np.ones((1, 3, 4), np.float32))
    graph.run({"x": feeds["x"], "y": kept}, {"sum": kept})
    np.testing.assert_array_equal(kept.read(), feeds["x"] + 1)


@pytest.mark.usefixtures("card")
def test_a_decoder_keeps_its_cache_there_and_says_the_same(tmp_path: Path) -> None:
    part = write_decoder(tmp_path / "decoder.onnx", SPEC, FIXED)
    here = kv_decoder(opened(part, replace(ON_CARD, provider="cpu")), part, SPEC, 64)
    there = kv_decoder(opened(part), part, SPEC, 64)
    assert isinstance(there._cache, CardCache)  # type: ignore[attr-defined]
    for segments in ([words("a picture")], [Tokens((40,))], [Tokens((41,))]):
        np.testing.assert_array_equal(there.extend(segments), here.extend(segments))
    for decoder in (here, there):
        decoder.rewind(5)
    np.testing.assert_array_equal(there.extend([words("other")]), here.extend([words("other")]))
    snapshot = there.snapshot()
    again = kv_decoder(opened(part), part, SPEC, 64)
    again.restore(snapshot)
    here.restore(snapshot)
    np.testing.assert_array_equal(again.extend([Tokens((7,))]), here.extend([Tokens((7,))]))


@pytest.mark.usefixtures("card")
def test_a_card_that_fails_is_told_apart(pair: PartFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = opened(pair)

    def fails(binding: Any) -> None:
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered\n at kernel.cu")

    monkeypatch.setattr(graph, "_session", type("Broken", (), {"run_with_iobinding": staticmethod(fails)}))
    with pytest.raises(ProviderError, match="the card failed: CUDA failure 700: an illegal memory access"):
        graph.run(feed(2))
    kept = graph.zeros((2, 2), "float32")
    with pytest.raises(ProviderError, match="the card failed"):
        kept.write(np.zeros((3, 3), np.float32))
    monkeypatch.setattr(on_card, "_CARD", "nowhere")
    with pytest.raises(ProviderError, match="no room on the card for"):
        graph.zeros((2, 2), "float32")


def test_arrays_that_do_not_fit_are_an_error_of_the_call(pair: PartFiles, card: None) -> None:
    graph = opened(pair)
    with pytest.raises(EngineError) as caught:
        graph.run({"x": np.zeros((1, 2, 5), np.float32), "y": np.zeros((1, 2, 4), np.float32)})
    assert not isinstance(caught.value, ProviderError)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_does_not_load_is_named(
    provider: Any, pair: PartFiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The library of this environment has none, and alone would go on with the processor."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ProviderError, match=r"cannot open pair\.onnx with") as caught:
        opened(pair, replace(ON_CARD, provider=provider))
    assert "onnxruntime-gpu" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            "[E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] ProviderLibrary::Get() [ONNXRuntimeError] "
            ": 1 : FAIL : Failed to load library /x/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: "
            "cannot open shared object file: No such file or directory",
            "libcublasLt.so.13",
        ),
        ("Failed to load libcudnn.so.9: libcudnn.so.9: cannot open shared object file", "libcudnn.so.9"),
        ('LoadLibrary failed with error 126 "" when trying to load "C:\\capi\\onnxruntime_providers_cuda.dll"', ".dll"),
    ],
)
def test_which_library_is_missing(line: str, found: str) -> None:
    match = on_card._MISSING.search(line)
    assert match
    assert (match[1] or match[2]).endswith(found)


def test_why_this_build_has_no_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "inspect", lambda: nvidia.NONE)
    assert set(provider_refusals("onnxruntime")) == {"cuda", "tensorrt"}
    monkeypatch.setattr(on_card.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    told = provider_refusals("onnxruntime")
    assert "has no CUDAExecutionProvider: pip uninstall onnxruntime; pip install onnxruntime-gpu" in told["cuda"]
    full = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(on_card.ort, "get_available_providers", lambda: full)
    assert provider_refusals("onnxruntime") == {"cuda": "", "tensorrt": ""}


@pytest.mark.parametrize(("cuda", "refused"), [((12, 6), True), ((13, 0), False), ((13, 2), False)])
def test_a_driver_that_is_too_old(cuda: tuple[int, int], refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_card.ort, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(on_card.ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(nvidia, "inspect", lambda: Graphics(replace(CARD, cuda=cuda)))
    told = provider_refusals("onnxruntime")["cuda"]
    assert bool(told) == refused
    assert not refused or told == "this onnxruntime is for CUDA 13.0, and the driver runs 12.6: update it"


def test_engines_are_kept_for_one_bundle_version_and_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(nvidia, "inspect", lambda: Graphics(CARD))
    options = replace(ON_CARD, provider="tensorrt", bundle="a" * 64)
    first = on_card._engine_folder(options)
    assert first.is_dir()
    assert first.parent == tmp_path / "edge-vlm" / "tensorrt"
    assert on_card._engine_folder(options) == first
    assert on_card._engine_folder(replace(options, bundle="b" * 64)) != first
    told = on_card._options("tensorrt", options)
    assert (told["trt_engine_cache_path"], told["trt_engine_cache_enable"]) == (str(first), "1")
    monkeypatch.setattr(nvidia, "inspect", lambda: Graphics(replace(CARD, compute=(8, 9))))
    assert on_card._engine_folder(options) != first
    assert on_card._options("cuda", options)["use_tf32"] == "0"


def test_where_each_node_runs_is_the_librarys_word(pair: PartFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def session(path: Path, options: OpenOptions, more: Any) -> Any:
        settings = on_cpu.settings(options.threads, options.debug)
        for key, value in more.items():
            settings.add_session_config_entry(key, value)
        return on_card.ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(on_card, "open_session", session)
    found = list(onnxruntime.placement(pair))
    assert {(one.operation, one.processor, one.why) for one in found} == {("Add", "cpu", "the library chose it")}
    monkeypatch.setattr(on_card, "CPU", "none of these")
    assert {one.processor for one in onnxruntime.placement(pair)} == {"gpu"}


def test_an_engine_of_the_processor_is_no_card(pair: PartFiles) -> None:
    graph: Graph = opened(pair, replace(ON_CARD, provider="cpu"))
    assert not isinstance(graph, DeviceGraph)
