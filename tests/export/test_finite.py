"""NaN, infinity and what a scheme's type cannot hold: refused by name before anything is written."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from exported import Exports
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from edge import plugins
from edge.errors import CheckpointError, UsageError
from edge.recipes import RECIPES, Target
from exporters import export as exporting
from exporters import finite, reference, targets
from exporters.export import ExportRequest, export
from exporters.formats import FITTED, HALF, Job
from exporters.formats import gguf as gguf_format
from exporters.gguf import packing
from exporters.models.attention import GrowingCache
from exporters.models.decoders import llama
from exporters.pipeline import components, encoders
from exporters.quantization import importance, integers
from exporters.sources.checkpoint import Checkpoint, open_checkpoint
from exporters.sources.weights import Stored, Weights

VALUES = (math.nan, math.inf, -math.inf)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SCHEMES = [
    (format, role, scheme)
    for format in plugins.names(targets.FORMATS)
    for role, table in targets.schemes(format).items()
    for scheme in table
]


@pytest.fixture(scope="module")
def checkpoint(exports: Exports) -> Checkpoint:
    return open_checkpoint(str(exports.checkpoint()))


def holding(checkpoint: Checkpoint, name: str, place: float, value: float, dtype: torch.dtype) -> Checkpoint:
    """The checkpoint, one number of one tensor changed, somewhere between its first (0) and its last (1)."""
    tensor = checkpoint.weights[name].to(dtype, copy=True)
    tensor.view(-1)[round(place * (tensor.numel() - 1))] = value
    stored = {
        key: Stored(
            checkpoint.weights.shape(key), checkpoint.weights.dtype(key), lambda key=key: checkpoint.weights[key]
        )
        for key in checkpoint.weights
    }
    stored[name] = Stored(tuple(tensor.shape), dtype, lambda: tensor)
    return replace(checkpoint, weights=Weights(stored, checkpoint.weights.files))


def check(checkpoint: Checkpoint, to=RECIPES["onnx-w8a8-w4"].targets, options=targets.NO_OPTIONS) -> None:
    finite.check(checkpoint, to, options, lambda done: None)


def used(checkpoint: Checkpoint) -> list[str]:
    return sorted({key for part in components(checkpoint) for source in part.keys.values() for key in source.names})


@given(data=st.data(), place=st.floats(0, 1), value=st.sampled_from(VALUES), dtype=st.sampled_from(DTYPES))
@settings(deadline=None)
def test_a_number_that_is_not_finite_is_named(checkpoint, data, place, value, dtype):
    """Whatever tensor, whatever place, whatever recipe: also where 4-bit rounding would hide it."""
    name = data.draw(st.sampled_from(used(checkpoint)))
    recipe = data.draw(st.sampled_from(sorted(RECIPES)))
    spoilt = holding(checkpoint, name, place, value, dtype)
    tensor = spoilt.weights[name]
    first = [int(axis[0]) for axis in (~tensor.isfinite()).nonzero(as_tuple=True)]
    with pytest.raises(CheckpointError) as caught:
        check(spoilt, RECIPES[recipe].targets)
    kind = "NaN" if math.isnan(value) else "infinite"
    assert caught.value.message.splitlines()[1:] == [f"  {name}: 1 {kind} of {tensor.numel()}, the first at {first}"]


def test_every_tensor_is_looked_at(checkpoint):
    for name in used(checkpoint):
        with pytest.raises(CheckpointError, match="not finite"):
            check(holding(checkpoint, name, 0.5, math.nan, torch.float16))
    check(checkpoint)


def test_what_no_part_computes_does_not_matter(checkpoint):
    unused = set(checkpoint.weights) - set(used(checkpoint))
    assert any("layers.2" in name for name in unused)  # behind the layer whose features are taken
    for name in unused:
        check(holding(checkpoint, name, 0.5, math.nan, torch.float16))


def test_all_are_counted_and_some_named(checkpoint):
    spoilt = checkpoint
    for name in used(checkpoint)[:11]:
        for place, value in ((0.2, math.nan), (0.6, math.inf), (1.0, math.nan)):
            spoilt = holding(spoilt, name, place, value, torch.float32)
    with pytest.raises(CheckpointError) as caught:
        check(spoilt)
    lines = caught.value.message.splitlines()
    assert len(lines) == 10 and lines[-1] == "  and 3 more"
    assert all("2 NaN, 1 infinite of " in line for line in lines[1:-1])


def test_a_double_beyond_float32_is_infinite_there(checkpoint):
    name = used(checkpoint)[0]
    for value, fits in ((3.4e38, True), (3.5e38, False), (-1e300, False)):
        large = holding(checkpoint, name, 0.0, value, torch.float64)
        if fits:
            check(large, {role: Target("onnx", "fp32") for role in ("vision", "decoder")})
        else:
            with pytest.raises(CheckpointError, match=rf"{name}: 1 infinite of \d+, the first at \[0"):
                check(large)


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_export_refuses_before_it_builds(exports: Exports, tmp_path, monkeypatch, recipe):
    source = tmp_path / "checkpoint"
    source.mkdir()
    for file in exports.checkpoint().iterdir():
        if file.name != "model.safetensors":
            (source / file.name).write_bytes(file.read_bytes())
    tensors = load_file(exports.checkpoint() / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = math.nan
    save_file(tensors, source / "model.safetensors")
    monkeypatch.setattr(exporting.staging, "create", lambda output: pytest.fail("a folder was made"))
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up_proj\.weight: 1 NaN of 6144, the first at \[3, 4\]"):
        export(ExportRequest(str(source), tmp_path / "out", recipe=recipe), lambda stage, done: None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def parts_of(checkpoint: Checkpoint, format: str, role: str, scheme: str):
    """The component, and targets in which only it is narrow."""
    to = {"vision": Target("onnx", "fp32"), "decoder": Target("onnx", "fp32"), role: Target(format, scheme)}
    return next(p for p in (*encoders(checkpoint, to), components(checkpoint)[1]) if p.role == role), to


@pytest.mark.parametrize(("format", "role", "scheme"), SCHEMES)
def test_what_a_scheme_cannot_hold_is_named_with_a_wider_one(checkpoint, format, role, scheme):
    part, to = parts_of(checkpoint, format, role, scheme)
    bounds = plugins.load(targets.FORMATS, format).bounds(Job(part, scheme, Path(), checkpoint))
    assert bounds.keys() <= part.skeleton().state_dict().keys()
    assert all(bound >= HALF for bound in bounds.values())
    narrow = {name: bound for name, bound in bounds.items() if bound < 1e30}
    for name, bound in list(narrow.items())[:: max(1, len(narrow) // 5)]:
        key = part.keys[name].names[0]
        check(holding(checkpoint, key, 0.5, -bound * 0.999, torch.float32), to)
        with pytest.raises(UsageError, match=rf"{format} {scheme} cannot store weights of the {role}") as caught:
            check(holding(checkpoint, key, 0.5, -bound, torch.float32), to)
        assert f"\n  {key}: up to {bound:.6g}" in caught.value.message
        assert "--format" in caught.value.hint or "--scheme" in caught.value.hint
        if named := re.search(rf"--scheme {role}=(\w+)", caught.value.hint):
            wider = named[1]
            assert wider != scheme
            check(holding(checkpoint, key, 0.5, -bound, torch.float32), to | {role: Target(format, wider)})


@pytest.mark.parametrize(
    ("recipe", "scheme"),
    [("onnx-fp32", "fp16"), ("gguf-f16", "f16"), ("coreml-fp16", "fp16")],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bfloat16_beyond_half_precision(checkpoint, recipe, scheme, dtype):
    to = dict(RECIPES[recipe].targets)
    to["decoder"] = replace(to["decoder"], scheme=scheme)
    large = holding(checkpoint, "model.layers.1.mlp.down_proj.weight", 0.3, 70_000, dtype)
    with pytest.raises(UsageError, match=r"layers\.1\.mlp\.down_proj\.weight: up to 7\d{4}, must be below 65520"):
        check(large, to)
    check(large, RECIPES["onnx-w8a8-w4"].targets)


def test_vectors_stay_wide_where_they_are_stored_so(checkpoint):
    large = holding(checkpoint, "model.norm.weight", 0.5, 1e6, torch.float32)
    for name in ("onnx-w8a8-w4", "gguf-f16", "tflite-w8a8-w4", "executorch-w8a8-8da4w"):
        check(large, RECIPES[name].targets)
    with pytest.raises(UsageError, match=r"model\.norm\.weight"):
        check(large, RECIPES["coreml-fp16"].targets)


def test_tensor_types_count(checkpoint):
    large = holding(checkpoint, "model.layers.1.mlp.down_proj.weight", 0.3, 70_000, torch.float32)
    to = dict(RECIPES["gguf-bf16"].targets)
    check(large, to)
    with pytest.raises(UsageError, match="down_proj") as caught:
        check(large, to, {"gguf": {"tensor_type": ("ffn_down=f16",)}})
    assert all(option in caught.value.hint for option in ("--format", "--tensor-type"))
    check(large, to | {"decoder": Target("gguf", "f16")}, {"gguf": {"tensor_type": ("ffn_down=bf16",)}})


def test_a_scheme_that_does_not_take_the_tensor_types_is_no_way_out(checkpoint):
    large = holding(checkpoint, "model.layers.1.mlp.down_proj.weight", 0.3, 70_000, torch.float32)
    to = RECIPES["gguf-q4_k_m"].targets | {"decoder": Target("gguf", "q8_0")}
    check(large, to)
    with pytest.raises(UsageError, match="down_proj") as caught:
        check(large, to | {"decoder": Target("gguf", "q4_k_m")}, {"gguf": {"tensor_type": ("attn_q=q5_0",)}})
    assert all(option in caught.value.hint for option in ("--format", "--tensor-type"))


@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.01, 0.3, 1.0]),
    positive=st.booleans(),
    weighed=st.booleans(),
)
@settings(deadline=None)
def test_a_fitted_scale_is_within_what_bounds_assume(seed, spread, positive, weighed):
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 64, generator=random) * spread
    weight[:, ::32] = torch.rand(8, 2, generator=random) * 2 - 1
    importance = torch.rand(64, generator=random).pow(8) if weighed else None
    scales = integers.blockwise(weight, 4, importance, positive=positive).scales
    peaks = weight.view(8, 2, 32).abs().amax(-1)
    assert bool((scales.abs() <= FITTED * peaks / (7 if positive else 8)).all())


@pytest.mark.parametrize("kind", [kind for kind in gguf_format._BOUNDS if kind != Kind.F32])
def test_below_its_bound_a_kind_holds_a_weight(kind):
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    weight[2, 37] = peak = 0.99 * gguf_format._BOUNDS[kind]
    stored = torch.from_numpy(gguf.dequantize(packing.pack(weight, kind), kind).copy()).view(4, 256)
    assert bool(stored.isfinite().all())
    assert float(stored[2, 37]) == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("value", VALUES)
def test_a_reference_that_is_not_finite_is_none(value):
    decoder = llama.tiny().requires_grad_(False)
    decoder.norm.weight[0] = value
    with pytest.raises(CheckpointError, match="outputs of the decoder as NaN or infinity"):
        reference.answer(decoder, [[1, 2, 3]], torch.zeros(1, 1, 64).numpy())


def test_an_importance_that_overflows_is_none():
    decoder = llama.tiny().requires_grad_(False)
    decoder(torch.ones(1, 3, 64), GrowingCache(4, 2, decoder.config.rope))
    decoder.layers[0].input_layernorm.weight.fill_(1e30)  # finite, and its square is not
    with pytest.raises(CheckpointError, match=r"layers\.0\.qkv_proj\.weight is NaN or infinite"):
        importance.measure(decoder, [torch.ones(1, 3, 64)])
