"""ONNX graphs that compute in halves: what is a half in them, and that CUDA has the kernels of their operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from card_fakes import with_card
from commands import call
from exported import Exports
from onnx import TensorProto

import edge
from edge import devices
from edge.bundle.manifest import Bundle, Manifest
from edge.engines import installed_engines
from edge.errors import EngineError
from edge.inference import session
from edge.planning import fit as fits
from edge.planning import placement
from edge.planning.fit import Fit
from edge.planning.sizes import cache_item
from edge.verify import NOT_MEASURED, verify
from exporters.quantization import integers
from runtimes import onnxruntime
from runtimes.onnxruntime import card as on_card
from runtimes.onnxruntime.graph import open_session

RECIPES = ("onnx-w16a16-w4a16", "onnx-w16a16-w16a16")


@pytest.mark.parametrize("recipe", RECIPES)
def test_only_the_ends_are_float32(exports: Exports, recipe: str) -> None:
    bundle = Bundle.open(exports.bundle(recipe=recipe))
    for part in bundle.manifest.parts:
        graph = onnx.load(bundle.path / part.files[0].path, load_external_data=False).graph
        wide = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
        assert wide == set()
        ends = {p.name: p.type.tensor_type.elem_type for p in (*graph.input, *graph.output)}
        halves = {name for name, kind in ends.items() if kind == TensorProto.FLOAT16}
        assert halves == {name for name in ends if name.startswith(("past_key_values.", "present."))}
        casts = [node for node in graph.node if node.op_type == "Cast"]
        assert {node.input[0] for node in casts} >= {"inputs_embeds" if "decoder" in part.covers else "pixel_values"}
    decoder = bundle.manifest.part("decoder")
    assert cache_item(decoder) == 2
    assert {tensor.dtype for tensor in decoder.inputs if tensor.name.startswith("past")} == {"float16"}


def test_what_an_engine_declares_for_cuda_is_what_has_the_kernels(exports: Exports) -> None:
    """And the other way round: of what is not declared, something has none."""
    (engine,) = (one for one in installed_engines() if one.name == "onnxruntime")
    for recipe in (*RECIPES, "onnx-w8a8-w4", "onnx-fp32"):
        bundle = Bundle.open(exports.bundle(recipe=recipe))
        for part, found in zip(bundle.manifest.parts, placement.placements(bundle), strict=True):
            role = "decoder" if "decoder" in part.covers else "vision"
            lacking = {one.operation for one in found.operations if one.processor != "gpu"}
            assert found.predicted
            assert engine.computes("cuda", role, part.scheme) == (not lacking), (role, part.scheme, lacking)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one, whose place the processor takes: its memory, its kernels and its library's word."""
    here = with_card(devices.detect())
    monkeypatch.setattr(session, "detect", lambda: here)
    monkeypatch.setattr(on_card, "_CARD", "cpu")
    monkeypatch.setattr(on_card, "open_session", lambda path, options: open_session(str(path), options.threads))
    monkeypatch.setattr(onnxruntime, "providers", lambda: {"cuda": "", "tensorrt": ""})


@pytest.mark.usefixtures("card")
def test_golden_is_replayed_through_the_card(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(exports.bundle(recipe=RECIPES[0]))
    found = verify(bundle, provider="cuda")
    assert found.ok
    assert found.providers == ("vision cuda", "decoder cuda")
    assert found.notes == (NOT_MEASURED,)
    bounds = {row.stage: row.tolerance for row in found.rows if row.against == "stored" and row.tolerance}
    assert {stage: round(bound["cosine"], 6) for stage, bound in bounds.items()} == {"vision": 0.999, "prefill": 0.999}
    assert verify(bundle, provider="tensorrt").providers == ("vision tensorrt", "decoder cuda")
    with edge.load(bundle.path, provider="cuda") as there, edge.load(bundle.path, provider="cpu") as here:
        assert there.plan.on_card and not here.plan.on_card
        assert there.ask(None, "What?", max_tokens=12) == here.ask(None, "What?", max_tokens=12)
    run = on_card.CardGraph.run

    def wrong(self: Any, feeds: Any, into: Any = None) -> Any:
        made = run(self, feeds, into)
        for array in made.values():
            if isinstance(array, np.ndarray):
                array += np.roll(array, 1)
        return made

    monkeypatch.setattr(on_card.CardGraph, "run", wrong)
    assert {row.stage for row in verify(bundle, provider="cuda").rows if not row.ok} >= {"vision", "prefill"}


def test_a_jetsons_recipes_are_compared(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a checkpoint, where no recipe was named."""
    monkeypatch.setenv("COLUMNS", "100")
    arguments = ["fit", exports.checkpoint(), "--device", "jetson_orin_nano"]
    found = call(*arguments, "--json").json
    recipes = devices.profile("jetson_orin_nano")
    assert set(found["alternatives"]) == set(recipes.alternatives)
    assert found["better"] in (recipes.recipe, *recipes.alternatives)
    shown = call(*arguments)
    assert (shown.code, shown.out.count("better, as predicted")) == (0, 1)
    assert "alternatives" not in call(*arguments, "--recipe", "onnx-w8a8-w4", "--json").json
    monkeypatch.setattr("edge.planning.fit.times", lambda *given: ())
    monkeypatch.setattr("edge.planning.fit.Fit.value", lambda self, name: None)
    assert call(*arguments, "--json").json["better"] is None


def test_what_does_not_fit_is_compared_too(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = fits.fit

    def refuses(manifest: Manifest, *given: Any, **options: Any) -> Fit:
        if manifest.recipe == "onnx-w16a16-w4a16":
            raise EngineError("too little memory: it takes 9 GB\n  in detail")
        return fit(manifest, *given, **options)

    monkeypatch.setattr(fits, "fit", refuses)
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["fit", exports.checkpoint(), "--device", "jetson_orin_nano"]
    assert call(*arguments, "--json").json["alternatives"]["onnx-w16a16-w4a16"] == {"fits": False}
    assert "too little memory" in call(*arguments).out


def test_scales_that_a_half_holds() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)) * 1e-3
    packed = integers.blockwise(weight, 4)
    halved = packed.halved()
    assert torch.equal(halved.scales, packed.scales.half().float())
    error = np.abs(halved.dequantized().numpy() - packed.dequantized().numpy()).max()
    assert 0 < error < 1e-5
    huge = integers.blockwise(torch.full((1, 32), 1e9), 4).halved()
    assert bool(huge.scales.isfinite().all())
